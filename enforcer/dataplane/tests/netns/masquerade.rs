//! `--masquerade`: replies that leave the pod past the node reach no client, unless the pod sees the
//! node's address.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use portmapping_dataplane::Settings;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};
use socket2::{Domain, Socket, Type};

use crate::lab::{
    Backend, CLIENT, CLIENT_V6, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, iptables_of, map,
    range, settings_for,
};
use crate::netns::Netns;
use crate::serve::{UdpClient, ask_tcp, ask_udp, serve};

crate::for_each_backend!(
    replies_past_the_node_are_lost_without_and_arrive_with_it,
    masquerade_goes_on_and_off_without_damage_or_a_restart,
    connection_through_a_service_keeps_its_address,
    port_whose_replies_leave_past_the_node_is_seen,
);

/// The addresses that a pod sees of a masqueraded connection.
const SEEN: &str = "pod1 10.88.0.1";
const SEEN_V6: &str = "pod1 fd88::1";

fn mappings() -> [Mapping; 4] {
    [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        map(Udp, 20000, POD1_V6, 9040),
    ]
}

fn settings(masquerade: bool) -> Settings {
    Settings {
        masquerade,
        ..settings_for(range("20000-29999"))
    }
}

/// Returns a lab whose first pod sends replies to clients by an interface of its own.
pub(crate) fn lab_with_replies_past_the_node() -> Lab {
    let lab = Lab::new();
    lab.pod1.sh(&format!(
        "ip link add eth1 type veth peer name eth1 netns {client}
         ip addr add 10.99.0.11/24 dev eth1
         ip addr add fd99::11/64 dev eth1 nodad
         ip link set eth1 up",
        client = lab.client.path(),
    ));
    lab.client.sh("ip addr add 10.99.0.2/24 dev eth1
         ip addr add fd99::2/64 dev eth1 nodad
         ip link set eth1 up");
    lab.pod1.sh("ip rule add to 172.30.0.0/24 lookup 100
         ip route add default via 10.99.0.2 table 100
         ip -6 rule add to fd30::/64 lookup 100
         ip -6 route add default via fd99::2 table 100");
    lab
}

/// Returns the errors of clients that wait for an answer for a second.
fn unanswered(from: &Netns) -> [io::Error; 4] {
    let limit = Duration::from_secs(1);
    let connect = |to: SocketAddr| from.run(|| TcpStream::connect_timeout(&to, limit));
    let ask = |to: SocketAddr| UdpClient::new(from, to).ask(limit);
    let (v4, v6) = (at(NODE, 20000), at(NODE_V6, 20000));
    [
        connect(v4).unwrap_err(),
        connect(v6).unwrap_err(),
        ask(v4).unwrap_err(),
        ask(v6).unwrap_err(),
    ]
}

fn assert_seen(lab: &Lab, v4: &str, v6: &str) {
    for (to, seen) in [(NODE, v4), (NODE_V6, v6)] {
        assert_eq!(ask_tcp(&lab.client, at(to, 20000)).unwrap(), seen);
        assert_eq!(ask_udp(&lab.client, at(to, 20000)).unwrap(), seen);
    }
}

fn replies_past_the_node_are_lost_without_and_arrive_with_it(backend: Backend) {
    let lab = lab_with_replies_past_the_node();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    lab.driver_with(backend, &settings(false))
        .reconcile(&mappings());
    for error in unanswered(&lab.client) {
        let unanswered = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];
        assert!(unanswered.contains(&error.kind()), "{error}");
    }
    // the enforcer starts again with the flag
    let mut driver = lab.driver_with(backend, &settings(true));
    driver.repair(&mappings());
    driver.assert_is(&mappings().into());
    assert_seen(&lab, SEEN, SEEN_V6);
    // and a restart finds nothing to do
    let rules = lab.rules(backend);
    let mut driver = lab.driver_with(backend, &settings(true));
    assert!(driver.observe().intact);
    assert_eq!(lab.rules(backend), rules);
}

fn masquerade_goes_on_and_off_without_damage_or_a_restart(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver_with(backend, &settings(false));
    driver.reconcile(&mappings());
    let before = lab.rules(backend);
    let (plain, plain_v6) = (format!("pod1 {CLIENT}"), format!("pod1 {CLIENT_V6}"));
    for _ in 0..2 {
        assert_seen(&lab, &plain, &plain_v6);
        driver.set_masquerade(true);
        assert!(driver.observe().intact, "no damage to be told of");
        assert_seen(&lab, SEEN, SEEN_V6);
        driver.set_masquerade(false);
        assert!(driver.observe().intact);
        assert_eq!(lab.rules(backend), before);
    }
    driver.uninstall();
}

/// Another program translates a service address, with a port of our range, to the pod.
fn connection_through_a_service_keeps_its_address(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver_with(backend, &settings(true));
    driver.reconcile(&mappings());
    lab.iptables(
        iptables_of(backend),
        "-t nat -A PREROUTING -d 192.0.2.9 -p tcp --dport 20000 -j DNAT --to-destination 10.88.0.11:9040",
    );
    let seen = ask_tcp(&lab.client, at("192.0.2.9", 20000)).unwrap();
    assert_eq!(seen, format!("pod1 {CLIENT}"));
}

fn port_whose_replies_leave_past_the_node_is_seen(backend: Backend) {
    let lab = lab_with_replies_past_the_node();
    lab.client
        .sh("ip addr add 172.30.0.9/24 dev eth0; ip addr add fd30::9/64 dev eth0 nodad");
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let silent = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)];
    let mut mappings = silent.to_vec();
    mappings.push(map(Tcp, 20001, POD2, 9040));
    let mut driver = lab.driver_with(backend, &settings(false));
    driver.reconcile(&mappings);
    let connect = |from: &str, to: SocketAddr| {
        lab.client.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.bind(&at(from, 0).into()).unwrap();
            socket
                .connect_timeout(&to.into(), Duration::from_millis(300))
                .is_ok()
        })
    };
    // one client may have reasons of its own
    for (from, to) in [(CLIENT, NODE), (CLIENT_V6, NODE_V6)] {
        assert!(!connect(from, at(to, 20000)));
    }
    assert!(connect(CLIENT, at(NODE, 20001)));
    assert!(connect("172.30.0.9", at(NODE, 20001)));
    let found = driver.unanswered(&mappings);
    assert_eq!((found.flows, found.mappings), (2, BTreeSet::new()));
    for (from, to) in [("172.30.0.9", NODE), ("fd30::9", NODE_V6)] {
        assert!(!connect(from, at(to, 20000)));
    }
    let found = driver.unanswered(&mappings);
    assert_eq!((found.flows, found.mappings), (4, silent.clone().into()));
    // the cure; the flows of before stay until they time out
    driver.set_masquerade(true);
    driver.observe();
    assert!(connect(CLIENT, at(NODE, 20000)));
    assert!(connect(CLIENT_V6, at(NODE_V6, 20000)));
    let found = driver.unanswered(&mappings);
    assert_eq!((found.flows, found.mappings), (4, BTreeSet::new()));
}
