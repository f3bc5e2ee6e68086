use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::testing::{any_port, any_protocol, any_range, range};
use super::*;

/// The longest chain name iptables takes.
const LONGEST_NAME: usize = 28;

#[test]
fn fan_out_is_the_smallest_that_suffices() {
    for (text, fan_out) in [
        ("20000", 1),
        ("20000-20007", 2),
        ("20000-20008", 3),
        ("20000-29999", 22),
        ("10000-29999", 28),
        ("1-65535", 41),
    ] {
        assert_eq!(Tree::new(range(text)).fan_out, fan_out, "{text}");
    }
}

#[test]
fn small_range_as_a_whole() {
    let chains = Tree::new(range("100-109")).chains(Protocol::Tcp);
    let chains: BTreeMap<&str, String> = chains
        .iter()
        .map(|(chain, jumps)| (chain.as_str(), jumps.join("\n")))
        .collect();
    let jump =
        |ports: &str, to: &str| format!("-p tcp -m tcp --dport {ports} -g PORTMAPPING-TCP-{to}");
    let root = [jump("100:108", "100-108"), jump("109", "109-109")].join("\n");
    let middle = [
        jump("100:102", "100-102"),
        jump("103:105", "103-105"),
        jump("106:108", "106-108"),
    ];
    let expected = BTreeMap::from([
        ("PORTMAPPING-TCP", root),
        ("PORTMAPPING-TCP-100-108", middle.join("\n")),
        ("PORTMAPPING-TCP-100-102", String::new()),
        ("PORTMAPPING-TCP-103-105", String::new()),
        ("PORTMAPPING-TCP-106-108", String::new()),
        ("PORTMAPPING-TCP-109-109", String::new()),
    ]);
    assert_eq!(chains, expected);
}

#[test]
fn single_port_needs_one_chain() {
    let tree = Tree::new(range("20000"));
    assert_eq!(
        tree.chains(Protocol::Udp),
        [("PORTMAPPING-UDP".to_owned(), Vec::new())]
    );
    let port = HostPort::new(20000).unwrap();
    assert_eq!(tree.leaf(Protocol::Udp, port), "PORTMAPPING-UDP");
}

#[test]
fn port_outside_the_range_has_a_chain_of_its_own() {
    let tree = Tree::new(range("20000-29999"));
    for port in [19999, 30000, 1, 65535] {
        let leaf = tree.leaf(Protocol::Sctp, HostPort::new(port).unwrap());
        assert_eq!(leaf, "PORTMAPPING-SCTP-OTHER");
    }
}

/// Follows the jumps as the kernel would.
fn route(
    chains: &BTreeMap<String, Vec<String>>,
    protocol: Protocol,
    port: HostPort,
) -> Vec<String> {
    let mut way = vec![Tree::root(protocol)];
    loop {
        let mut matching = chains[way.last().unwrap()].iter().filter_map(|rule| {
            let (ports, chain) = rule.split_once("--dport ")?.1.split_once(" -g ")?;
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            let span = first.parse::<u16>().unwrap()..=last.parse::<u16>().unwrap();
            span.contains(&port.get()).then(|| chain.to_owned())
        });
        let Some(next) = matching.next() else {
            return way;
        };
        assert_eq!(matching.next(), None, "two ways for {port}");
        drop(matching);
        way.push(next);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_port_has_one_way_to_its_leaf(range in any_range(), protocol in any_protocol()) {
        let tree = Tree::new(range);
        let list = tree.chains(protocol);
        let chains: BTreeMap<String, Vec<String>> = list.iter().cloned().collect();
        prop_assert_eq!(chains.len(), list.len(), "two chains of one name");
        prop_assert!(chains.keys().all(|name| name.len() <= LONGEST_NAME));
        let fan_out = usize::try_from(tree.fan_out).unwrap();
        prop_assert!(chains.values().all(|jumps| jumps.len() <= fan_out));
        let mut per_leaf: BTreeMap<String, usize> = BTreeMap::new();
        // the ends, and a sample in between
        let step = (range.size() / 500).max(1);
        for port in range.ports().step_by(step).chain([range.last()]) {
            let way = route(&chains, protocol, port);
            prop_assert!(way.len() <= 3);
            prop_assert_eq!(way.last().unwrap(), &tree.leaf(protocol, port));
        }
        for port in range.ports() {
            *per_leaf.entry(tree.leaf(protocol, port)).or_default() += 1;
        }
        prop_assert!(per_leaf.values().all(|ports| *ports <= fan_out));
        let without_jumps = list.iter().filter(|(_, jumps)| jumps.is_empty());
        let leaves: BTreeSet<String> = without_jumps.map(|(chain, _)| chain.clone()).collect();
        prop_assert_eq!(leaves, per_leaf.into_keys().collect::<BTreeSet<_>>());
    }

    #[test]
    fn no_port_makes_it_panic(range in any_range(), port in any_port(), protocol in any_protocol()) {
        prop_assert!(Tree::new(range).leaf(protocol, port).len() <= LONGEST_NAME);
    }
}
