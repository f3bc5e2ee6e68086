//! Mappings for the tests of this driver, fixed and random.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmapping_shared::{ContainerPort, HostPort, Mapping, PortRange, Protocol};
use proptest::prelude::*;

use crate::family::Family;

pub(super) fn range(text: &str) -> PortRange {
    text.parse().unwrap()
}

pub(super) fn map(protocol: Protocol, host_port: u16, pod: &str, container_port: u16) -> Mapping {
    Mapping {
        protocol,
        host_port: HostPort::new(host_port).unwrap(),
        host_ip: None,
        pod_ip: pod.parse().unwrap(),
        container_port: ContainerPort::new(container_port).unwrap(),
        owner: "8c1f3a52-uid".parse().unwrap(),
    }
}

pub(super) fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(Protocol::ALL.to_vec())
}

pub(super) fn any_range() -> impl Strategy<Value = PortRange> {
    (any_port(), any_port()).prop_map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap())
}

pub(super) fn any_port() -> impl Strategy<Value = HostPort> {
    (1..=u16::MAX).prop_map(|port| HostPort::new(port).unwrap())
}

/// Generates mappings of one family with few ports and pods, so that mappings share leaves.
pub(super) fn any_mapping(family: Family) -> impl Strategy<Value = Mapping> {
    let ip = move |host: u8| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 244, 1, host)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into())),
    };
    let port = prop_oneof![20000..20040_u16, 1..=u16::MAX];
    (
        any_protocol(),
        port,
        prop::option::of(any::<u8>()),
        any::<u8>(),
        1..=u16::MAX,
        "[a-zA-Z0-9-]{1,63}",
    )
        .prop_map(
            move |(protocol, host_port, host_ip, pod, container_port, owner)| Mapping {
                protocol,
                host_port: HostPort::new(host_port).unwrap(),
                host_ip: host_ip.map(ip),
                pod_ip: ip(pod),
                container_port: ContainerPort::new(container_port).unwrap(),
                owner: owner.parse().unwrap(),
            },
        )
}

/// Generates text that resembles the output of iptables-save.
pub(super) fn hostile_text() -> impl Strategy<Value = String> {
    let words = [
        "*nat",
        "*filter",
        "COMMIT",
        ":",
        "-A ",
        "-D ",
        "PREROUTING",
        "PORTMAPPING",
        "PORTMAPPING-TCP",
        "PORTMAPPING-TCP-0-0",
        "PORTMAPPING-UID-TCP-20000",
        "-m comment --comment \"portmapping:20000=abc 20001=def\"",
        "-p tcp -m tcp --dport 20000 -j DNAT --to-destination 10.0.0.1:80",
        "KUBE-SERVICES",
        " - [0:0]",
        "[1:2] ",
        "!",
        "-m comment ",
        "--comment ",
        "\"portmapping:abc\"",
        "portmapping",
        "\"",
        "\\",
        "'",
        "\n",
        "\0",
        " ",
        "-j ",
        "-g ",
        "DNAT ",
        "--to-destination ",
        "10.0.0.1:80",
        "[fd00::1]:80",
        "10.0.0.1",
        "-p tcp ",
        "--dport ",
        "20000",
        "99999",
        "-s ",
        "/32",
        "-d ",
        "é",
        "-",
        "--",
    ];
    let word = prop_oneof![
        8 => prop::sample::select(words.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(word, 0..60).prop_map(|words| words.concat())
}
