//! Mapped ports answer at the node's own addresses. Other addresses that are local to the node, such
//! as those of Services, keep their traffic.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use portmapping_dataplane::{AddressSelection, Settings};
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};
use socket2::{Domain, SockRef, Socket, Type};

use crate::lab::{
    Backend, Driver, Lab, NODE, NODE_V6, OTHER_NODE_ADDRESS, POD1, POD1_V6, POD2, at, ip, map,
    range,
};
use crate::netns::Netns;
use crate::serve::{Conversation, UdpClient, ask_tcp, ask_udp, assert_refused, serve, serve_at};

crate::for_each_backend!(
    service_address_on_the_node_keeps_its_traffic,
    udp_service_without_a_socket_gets_its_datagrams,
    flow_of_a_service_stays_when_its_port_number_is_mapped,
    loopback_is_refused_at_once,
    address_that_appears_answers_and_one_that_goes_does_not,
    restart_keeps_the_addresses_of_the_rules,
    selection_takes_reachable_addresses_only,
);

const SERVICE: &str = "10.96.0.7";
/// Local by a route alone, as a cloud agent makes it.
const EXTERNAL: &str = "203.0.113.7";
const SERVICE_V6: &str = "fd96::7";

/// Returns a node that has addresses of Services too.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.node.sh(&format!(
        "ip addr add {SERVICE}/32 dev lo
         ip route add local {EXTERNAL}/32 dev up0
         ip addr add {SERVICE_V6}/128 dev lo nodad"
    ));
    lab
}

/// Opens the driver of a node whose Node object names these addresses.
fn driver<'a>(lab: &'a Lab, backend: Backend, named: &[&str]) -> Driver<'a> {
    let settings = Settings {
        host_addresses: addresses(named),
        ..Settings::new(range("20000-29999"))
    };
    lab.driver_with(backend, &settings)
}

fn addresses(of: &[&str]) -> BTreeSet<IpAddr> {
    of.iter().copied().map(ip).collect()
}

fn everywhere() -> [Mapping; 4] {
    [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        map(Udp, 20000, POD1_V6, 9040),
    ]
}

fn service_address_on_the_node_keeps_its_traffic(backend: Backend) {
    let lab = lab();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let local = [SERVICE, EXTERNAL, SERVICE_V6];
    let _services = local.map(|address| serve_at(&lab.node, "service", at(address, 20000)));
    driver(&lab, backend, &[NODE, NODE_V6]).reconcile(&everywhere());
    for from in [&lab.client, &lab.node, &lab.pod2] {
        for address in local {
            let answer = ask_tcp(from, at(address, 20000)).unwrap();
            assert!(answer.starts_with("service "), "{address}: {answer}");
            let answer = ask_udp(from, at(address, 20000)).unwrap();
            assert!(answer.starts_with("service "), "{address}: {answer}");
        }
        for address in [NODE, NODE_V6] {
            let answer = ask_tcp(from, at(address, 20000)).unwrap();
            assert!(answer.starts_with("pod1 "), "{address}: {answer}");
            let answer = ask_udp(from, at(address, 20000)).unwrap();
            assert!(answer.starts_with("pod1 "), "{address}: {answer}");
        }
    }
}

/// kube-proxy in mode ipvs takes datagrams from hook input, where no socket waits for them.
fn udp_service_without_a_socket_gets_its_datagrams(backend: Backend) {
    let lab = lab();
    lab.node.sh("nft 'table inet other {
             chain input { type filter hook input priority 98; udp dport 20007 counter drop; }
         }'");
    driver(&lab, backend, &[NODE, NODE_V6]).reconcile(&everywhere());
    for address in [SERVICE, SERVICE_V6] {
        let client = UdpClient::new(&lab.client, at(address, 20007));
        let silence = client.ask(Duration::from_millis(300)).unwrap_err();
        assert_eq!(silence.kind(), ErrorKind::WouldBlock, "{address}");
    }
    let counted = lab.node.sh("nft list chain inet other input");
    assert!(counted.contains("packets 2 "), "{counted}");
}

fn flow_of_a_service_stays_when_its_port_number_is_mapped(backend: Backend) {
    let lab = lab();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _service = serve_at(&lab.node, "service", at(SERVICE, 20000));
    let mut driver = driver(&lab, backend, &[NODE]);
    // the node tracks flows once it has a nat rule
    driver.reconcile(&[map(Udp, 20001, POD1, 9040)]);
    let client = UdpClient::new(&lab.client, at(SERVICE, 20000));
    client.hears("service");
    let flow = || {
        let list = "conntrack -L -p udp --orig-port-dst 20000 -o id 2>/dev/null";
        let listed = lab.node.sh(list);
        listed.split("id=").nth(1).map(str::to_owned)
    };
    let before = flow();
    assert!(before.is_some());
    let mapping = map(Udp, 20000, POD1, 9040);
    driver.create(std::slice::from_ref(&mapping));
    driver.remove(&[mapping]);
    assert_eq!(flow(), before);
    client.hears("service");
}

/// Holds a port as the keeper does.
fn hold(node: &Netns, port: u16) -> (Socket, UdpSocket) {
    node.run(|| {
        let any: std::net::SocketAddr = ([0; 16], port).into();
        let tcp = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        tcp.bind(&any.into()).unwrap();
        let udp = UdpSocket::bind(any).unwrap();
        SockRef::from(&udp).bind_device(Some(b"lo")).unwrap();
        (tcp, udp)
    })
}

fn loopback_is_refused_at_once(backend: Backend) {
    let lab = lab();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _held = hold(&lab.node, 20000);
    let _other = serve(&lab.node, "other", 20001);
    driver(&lab, backend, &[NODE, NODE_V6]).reconcile(&everywhere());
    for loopback in ["127.0.0.1", "127.0.0.9", "::1"] {
        assert_refused(&lab.node, at(loopback, 20000));
        // with iptables the keeper's socket takes the datagram
        if backend == Backend::Nftables {
            let client = UdpClient::new(&lab.node, at(loopback, 20000));
            let refused = client.ask(Duration::from_secs(5)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{loopback}");
        }
    }
    // other programs of the node keep their ports there
    for loopback in ["127.0.0.1", "::1"] {
        let answer = ask_udp(&lab.node, at(loopback, 20001)).unwrap();
        assert!(answer.starts_with("other "), "{answer}");
    }
}

fn address_that_appears_answers_and_one_that_goes_does_not(backend: Backend) {
    const LATER: &str = "172.30.0.9";
    let lab = lab();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let mut driver = driver(&lab, backend, &[NODE, OTHER_NODE_ADDRESS, LATER]);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Tcp, 20001, POD2, 9040)]);
    let observed = driver.observe();
    assert_eq!(
        observed.host_addresses,
        addresses(&[NODE, OTHER_NODE_ADDRESS])
    );
    let mut connection = Conversation::open(&lab.client, at(OTHER_NODE_ADDRESS, 20000)).unwrap();
    lab.node.sh(&format!("ip addr add {LATER}/24 dev up0"));
    assert_refused(&lab.client, at(LATER, 20000));
    let observed = driver.observe();
    assert!(observed.intact, "a new address is not damage");
    assert!(observed.host_addresses.contains(&ip(LATER)));
    for (port, pod) in [(20000, "pod1"), (20001, "pod2")] {
        let answer = ask_tcp(&lab.client, at(LATER, port)).unwrap();
        assert!(answer.starts_with(pod), "{answer}");
    }
    // the Node object names other addresses
    let observed = driver.name_addresses(&[NODE, EXTERNAL, "192.0.2.99", "127.0.0.1"]);
    assert!(observed.intact);
    assert_eq!(observed.host_addresses, addresses(&[NODE, EXTERNAL]));
    assert_refused(&lab.client, at(LATER, 20000));
    assert_refused(&lab.client, at(OTHER_NODE_ADDRESS, 20000));
    for address in [NODE, EXTERNAL] {
        assert!(
            ask_tcp(&lab.client, at(address, 20000)).is_ok(),
            "{address}"
        );
    }
    connection.goes_on();
}

fn restart_keeps_the_addresses_of_the_rules(backend: Backend) {
    let lab = lab();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    let mut earlier = driver(&lab, backend, &[NODE]);
    earlier.name_addresses(&[NODE, EXTERNAL]);
    earlier.reconcile(&mappings);
    drop(earlier);
    let mut restarted = driver(&lab, backend, &[NODE]);
    let observed = restarted.observe();
    assert_eq!(observed.host_addresses, addresses(&[NODE, EXTERNAL]));
    assert!(observed.intact);
    restarted.reconcile(&mappings);
    assert!(ask_tcp(&lab.client, at(EXTERNAL, 20000)).is_ok());
    restarted.name_addresses(&[NODE]);
    assert_refused(&lab.client, at(EXTERNAL, 20000));
    assert!(ask_tcp(&lab.client, at(NODE, 20000)).is_ok());
}

fn selection_takes_reachable_addresses_only(backend: Backend) {
    let lab = lab();
    lab.node.sh("ip addr add 169.254.7.7/16 dev up0");
    let selected = |text: &str| {
        let settings = Settings {
            selection: text.parse::<AddressSelection>().unwrap(),
            ..Settings::new(range("20000-29999"))
        };
        let mut driver = lab.driver_with(backend, &settings);
        driver.reconcile(&[map(Tcp, 20000, POD1, 9040)]);
        driver.observe().host_addresses
    };
    let own = [NODE, OTHER_NODE_ADDRESS, NODE_V6, "10.88.0.1", "fd88::1"];
    let all = [&own[..], &[SERVICE, SERVICE_V6]].concat();
    assert_eq!(selected("all"), addresses(&all));
    let some = addresses(&[NODE, OTHER_NODE_ADDRESS, NODE_V6]);
    assert_eq!(selected("172.30.0.0/24,fd30::1,127.0.0.0/8"), some);
    assert_eq!(selected("192.0.2.0/24"), addresses(&[]));
}
