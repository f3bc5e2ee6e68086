//! The nftables driver alone: damage to its table, foreign elements, and refusals of the kernel.

mod damage;
mod others;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use portmapping_dataplane::Settings;
use portmapping_dataplane::netlink::Options;
use portmapping_dataplane::nftables::{self, Nftables};
use portmapping_shared::Protocol::{Sctp, Tcp, Udp};
use portmapping_shared::{Mapping, Plan};
use socket2::SockRef;

use crate::lab::{
    self, Backend, CLIENT, Driver, Lab, NODE, NODE_V6, OTHER_NODE_ADDRESS, POD1, POD1_V6, POD2, at,
    ip, map, range,
};
use crate::serve::{Server, UdpClient, ask_tcp, ask_udp, serve};

fn mappings() -> Vec<Mapping> {
    let bound = Mapping {
        host_ip: Some(ip(OTHER_NODE_ADDRESS)),
        ..map(Tcp, 20002, POD2, 9040)
    };
    vec![
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Sctp, 20000, POD1, 9040),
        map(Tcp, 20001, POD2, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        bound,
    ]
}

struct Damaged {
    lab: Lab,
    _servers: [Server; 2],
}

impl Damaged {
    fn new() -> Self {
        let lab = Lab::new();
        let servers = [
            serve(&lab.pod1, "pod1", 9040),
            serve(&lab.pod2, "pod2", 9040),
        ];
        Self {
            lab,
            _servers: servers,
        }
    }

    fn driver(&self) -> Driver<'_> {
        let mut driver = self.lab.driver(Backend::Nftables);
        driver.reconcile(&mappings());
        driver
    }

    fn nft(&self, script: &str) {
        self.lab.node.feed("nft", &["-f", "-"], script);
    }

    /// Asserts that the damage is detected, and that a reconciliation restores the table.
    fn assert_repaired(&self, driver: &mut Driver<'_>, lost: usize, intact: bool) {
        let observed = driver.observe();
        assert_eq!(observed.mappings.len(), mappings().len() - lost);
        assert_eq!(observed.intact, intact);
        driver.reconcile(&mappings());
        let pod1 = |answer: std::io::Result<String>| assert!(answer.unwrap().starts_with("pod1"));
        pod1(ask_tcp(&self.lab.client, at(NODE, 20000)));
        pod1(ask_udp(&self.lab.client, at(NODE, 20000)));
        pod1(ask_tcp(&self.lab.client, at(NODE_V6, 20000)));
        pod1(ask_tcp(&self.lab.node, at(NODE, 20000)));
        pod1(ask_tcp(&self.lab.pod1, at(NODE, 20000)));
        let pod2 = |answer: std::io::Result<String>| assert!(answer.unwrap().starts_with("pod2"));
        pod2(ask_tcp(&self.lab.client, at(NODE, 20001)));
        pod2(ask_tcp(&self.lab.client, at(OTHER_NODE_ADDRESS, 20002)));
    }
}

#[test]
fn nft_loads_its_own_listing_of_the_table() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    // some administrators save all rules of a node and load them at its next start
    let listed = damaged.lab.rules(Backend::Nftables);
    damaged.nft(&format!("flush ruleset\n{listed}"));
    assert_eq!(driver.observe().mappings, mappings().into_iter().collect());
}

#[test]
fn only_connections_to_itself_through_our_mappings_are_masqueraded() {
    let lab = Lab::new();
    let _node = serve(&lab.node, "node", 9040);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let bound = |node: &str, pod: &str| Mapping {
        host_ip: Some(ip(node)),
        ..map(Tcp, 20002, pod, 9040)
    };
    let mut driver = lab.driver(Backend::Nftables);
    driver.reconcile(&[bound(OTHER_NODE_ADDRESS, POD1), bound(NODE_V6, POD1_V6)]);
    let asks = |from, address, port| ask_tcp(from, at(address, port)).unwrap();
    assert_eq!(asks(&lab.pod1, OTHER_NODE_ADDRESS, 20002), "pod1 10.88.0.1");
    assert_eq!(asks(&lab.pod1, NODE_V6, 20002), "pod1 fd88::1");
    // a service of another program: client and server are both the node, at an address that
    // masquerading would not choose
    let (address, seen) = (OTHER_NODE_ADDRESS, format!("node {OTHER_NODE_ADDRESS}"));
    lab.node.sh(&format!(
        "ip route change local {address} dev up0 src {address} table local
         iptables-nft -t nat -A OUTPUT -p tcp -d {address} --dport 8080 -j DNAT --to {address}:9040"
    ));
    assert_eq!(asks(&lab.node, address, 9040), seen, "not translated");
    assert_eq!(asks(&lab.node, address, 8080), seen, "translated by others");
}

#[test]
fn table_removed_between_two_changes_is_made_again() {
    let damaged = Damaged::new();
    let mut driver = damaged.driver();
    damaged.nft("flush ruleset");
    // the reconciler restores the earlier mappings; the change itself succeeds
    driver.create(&[map(Tcp, 20300, POD1, 9040)]);
    assert!(ask_tcp(&damaged.lab.client, at(NODE, 20300)).is_ok());
    assert!(driver.observe().intact);
}

#[test]
fn lost_answers_are_read_back() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let options = Options {
        receive_buffer: 1,
        ..Options::default()
    };
    let settings = lab::settings_for(range("20000-29999"));
    let open = || Nftables::open_with(&settings, options);
    let mut driver = Driver::new(&lab.node, Box::new(lab.node.run(open).unwrap()));
    let many: Vec<Mapping> = (20000..22000)
        .map(|port| map(Tcp, port, POD1, 9040))
        .collect();
    driver.reconcile(&many);
    // the kernel refuses each of several messages; its answers do not fit the buffer
    let nft = "delete element inet portmapping ports4 { tcp . 20000-21999 }";
    let each: Vec<String> = (20000..22000)
        .map(|port| nft.replace("20000-21999", &port.to_string()))
        .collect();
    lab.node.feed("nft", &["-f", "-"], &each.join("\n"));
    driver.remove(&many);
    driver.assert_is(&BTreeSet::new());
}

#[test]
fn twenty_thousand_mappings_in_one_transaction() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(Backend::Nftables);
    let many: Vec<Mapping> = (20000..30000)
        .flat_map(|port| [map(Tcp, port, POD1, 9040), map(Udp, port, POD1, 9040)])
        .collect();
    driver.reconcile(&many);
    lab.node.sh("nft flush ruleset");
    driver.reconcile(&many);
    for port in [20000, 29999] {
        assert!(
            ask_tcp(&lab.client, at(NODE, port))
                .unwrap()
                .starts_with("pod1")
        );
        assert!(
            ask_udp(&lab.client, at(NODE, port))
                .unwrap()
                .starts_with("pod1")
        );
    }
    driver.reconcile(&[]);
}

#[test]
fn early_datagram_is_refused_and_leaves_no_conntrack_entry() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let excluded = {
        let mut ports = portmapping_shared::PortSet::default();
        ports.insert_range(range("20500-20501"));
        ports
    };
    let settings = Settings {
        excluded,
        ..lab::settings_for(range("20000-29999"))
    };
    let mut driver = lab.driver_with(Backend::Nftables, &settings);
    driver.reconcile(&[map(Udp, 20001, POD1, 9040)]);
    // held as the keeper holds a port: all addresses, on device lo only
    let _held = lab.node.run(|| {
        let socket = UdpSocket::bind("[::]:20000").unwrap();
        SockRef::from(&socket).bind_device(Some(b"lo")).unwrap();
        socket
    });
    let early = UdpClient::new(&lab.client, at(NODE, 20000));
    let early_v6 = UdpClient::new(&lab.client, at(NODE_V6, 20000));
    for client in [&early, &early_v6] {
        let refused = client.ask(Duration::from_secs(5)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(
        lab.node
            .sh("conntrack -L -p udp 2>/dev/null | grep -c dport=20000 || true"),
        "0\n"
    );
    driver.create(&[map(Udp, 20000, POD1, 9040)]);
    assert_eq!(early.hears("pod1"), format!("pod1 {CLIENT}"));
}

#[test]
fn needs_no_program() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let settings = lab::settings_for(range("20000-29999"));
    let open = || Nftables::open(&settings);
    let mut driver = Driver::new(&lab.node, Box::new(lab.node.run(open).unwrap()));
    driver.reconcile(&mappings());
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    driver.uninstall();
    lab.node.run(nftables::uninstall).unwrap();
    assert_eq!(lab.rules(Backend::Nftables), "");
}

#[test]
fn opening_changes_nothing() {
    let lab = Lab::new();
    let mut driver = lab.driver(Backend::Nftables);
    assert_eq!(lab.rules(Backend::Nftables), "");
    assert!(driver.observe().intact);
    driver.try_apply(&Plan::default()).unwrap();
    assert_eq!(lab.rules(Backend::Nftables), "");
}
