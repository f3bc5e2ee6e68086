//! The layout of iptables rules, and the upgrade from the layouts of snapshots before 0.1.0. These
//! had the owners in separate chains, and compared addresses with `xt_bpf` where that was available.

use std::collections::BTreeSet;

use portmapping_dataplane::Flavour;
use portmapping_dataplane::uninstall;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{
    self, CLIENT, CLIENT_V6, Driver, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, POD2_V6, at, ip, map,
    range,
};
use crate::serve::{Conversation, UdpClient, ask_tcp, ask_udp, serve};

crate::for_each_flavour!(
    only_what_a_pod_sends_to_itself_is_masqueraded,
    older_rules_are_taken_over_without_a_gap,
    older_rules_move_to_nftables,
    older_rules_are_uninstalled,
    opening_changes_nothing,
);

/// The rules of snapshots before 0.1.0 in the kernel: for IPv4 and for IPv6, with `xt_bpf` and without.
const OLDER: [[&str; 2]; 2] = [
    [
        include_str!("older/compared.iptables"),
        include_str!("older/compared.ip6tables"),
    ],
    [
        include_str!("older/per-pod.iptables"),
        include_str!("older/per-pod.ip6tables"),
    ],
];

/// The mappings in those rules.
fn older_mappings() -> Vec<Mapping> {
    let bound = |host_ip, mapping| Mapping {
        host_ip: Some(ip(host_ip)),
        ..mapping
    };
    let mut all = mappings();
    all.extend([
        bound(NODE, map(Tcp, 20002, POD2, 9041)),
        bound(NODE_V6, map(Udp, 20050, POD2_V6, 9041)),
        map(Tcp, 20002, POD1, 9042),
        map(Tcp, 30000, POD2, 9043),
    ]);
    all
}

fn mappings() -> Vec<Mapping> {
    vec![
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20001, POD2, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ]
}

fn older_node(flavour: Flavour, rules: [&str; 2]) -> Lab {
    let lab = Lab::new();
    for (family, rules) in ["iptables", "ip6tables"].into_iter().zip(rules) {
        let restore = format!("{flavour}-restore").replace("iptables", family);
        lab.node.feed(&restore, &[], rules);
    }
    lab
}

fn has_older_rules(rules: &str) -> bool {
    ["PORTMAPPING-UID", "PORTMAPPING-HAIRPIN", "-m bpf", "-20004"]
        .iter()
        .any(|sign| rules.contains(sign))
}

/// Returns how many packets of both families the rules of pods have masqueraded.
fn masqueraded(lab: &Lab, flavour: Flavour) -> u32 {
    let save = format!("{flavour}-save -c -t nat");
    let text = lab.node.sh(&format!(
        "{save}; {}",
        save.replace("iptables", "ip6tables")
    ));
    let rules = text
        .lines()
        .filter(|line| line.contains("PORTMAPPING-MASQ-") && line.contains("MASQUERADE"));
    rules
        .map(|rule| {
            let counter = rule.trim_start_matches('[').split(':').next().unwrap();
            counter.parse::<u32>().unwrap()
        })
        .sum()
}

fn only_what_a_pod_sends_to_itself_is_masqueraded(flavour: Flavour) {
    let lab = Lab::new();
    for table in ["iptables", "ip6tables"] {
        lab.node
            .set(&format!("net/bridge/bridge-nf-call-{table}"), "1");
    }
    let _servers = [
        serve(&lab.pod1, "pod1", 9040),
        serve(&lab.node, "node", 9041),
    ];
    let mut driver = lab.driver(flavour);
    driver.reconcile(&mappings());
    // another program's translation of packets that the node sends to itself
    let foreign = "-t nat -A OUTPUT -p tcp --dport 9999 -j DNAT --to-destination :9041";
    lab.iptables(flavour, foreign);
    lab.node.sh(&format!(
        "{} -w 30 {foreign}",
        flavour.to_string().replace("iptables", "ip6tables")
    ));
    let pod1 = |netns, node, seen: &str| {
        let answer = ask_tcp(netns, at(node, 20000)).unwrap();
        assert_eq!(answer, format!("pod1 {seen}"));
    };
    pod1(&lab.client, NODE, CLIENT);
    pod1(&lab.client, NODE_V6, CLIENT_V6);
    pod1(&lab.pod2, NODE, POD2);
    pod1(&lab.pod2, NODE_V6, POD2_V6);
    assert_eq!(
        ask_udp(&lab.pod2, at(NODE, 20000)).unwrap(),
        format!("pod1 {POD2}")
    );
    for node in [NODE, NODE_V6] {
        // a port without translation, and one that another program translates
        for port in [9041, 9999] {
            let answer = ask_tcp(&lab.node, at(node, port)).unwrap();
            assert_eq!(answer, format!("node {node}"));
        }
        ask_tcp(&lab.node, at(node, 20000)).unwrap();
    }
    assert_eq!(masqueraded(&lab, flavour), 0);
    pod1(&lab.pod1, NODE, "10.88.0.1");
    pod1(&lab.pod1, NODE_V6, "fd88::1");
    assert_eq!(masqueraded(&lab, flavour), 2);
    assert_eq!(
        ask_udp(&lab.pod1, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
    assert_eq!(masqueraded(&lab, flavour), 3);
}

fn older_rules_are_taken_over_without_a_gap(flavour: Flavour) {
    let all: BTreeSet<Mapping> = older_mappings().into_iter().collect();
    for rules in OLDER {
        // with the old range, and with another one
        for ports in ["20000-20099", "20000-29999"] {
            let lab = older_node(flavour, rules);
            assert!(has_older_rules(&lab.rules(flavour)));
            let _servers = [
                serve(&lab.pod1, "pod1", 9040),
                serve(&lab.pod2, "pod2", 9040),
            ];
            let mut connection = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
            let mut v6 = Conversation::open(&lab.client, at(NODE_V6, 20000)).unwrap();
            let datagrams = UdpClient::new(&lab.client, at(NODE, 20000));
            datagrams.hears("pod1");
            let settings = lab::settings_for(range(ports));
            let mut driver = lab.driver_with(flavour, &settings);
            let observed = driver.observe();
            assert_eq!(observed.mappings, all);
            assert!(!observed.intact, "an older layout is to be replaced");
            driver.reconcile(&older_mappings());
            assert!(!has_older_rules(&lab.rules(flavour)));
            connection.goes_on();
            v6.goes_on();
            datagrams.hears("pod1");
            for (address, seen) in [(NODE, "pod1 10.88.0.1"), (NODE_V6, "pod1 fd88::1")] {
                assert_eq!(ask_tcp(&lab.pod1, at(address, 20000)).unwrap(), seen);
            }
            let answer = ask_tcp(&lab.client, at(NODE, 20001)).unwrap();
            assert_eq!(answer, format!("pod2 {CLIENT}"));
        }
    }
    // a change of one mapping is enough to replace the rest
    let less = map(Tcp, 20001, POD2, 9040);
    for change in [vec![], vec![less.clone()]] {
        let lab = older_node(flavour, OLDER[0]);
        let mut driver = lab.driver(flavour);
        if change.is_empty() {
            driver.create(&[map(Tcp, 20007, POD2, 9040), map(Tcp, 20007, POD1_V6, 9040)]);
        } else {
            driver.remove(&change);
        }
        assert!(!has_older_rules(&lab.rules(flavour)));
        let rest = all.iter().filter(|mapping| !change.contains(mapping));
        assert!(
            rest.cloned()
                .collect::<BTreeSet<_>>()
                .is_subset(&driver.observe().mappings)
        );
    }
}

fn older_rules_move_to_nftables(flavour: Flavour) {
    let lab = older_node(flavour, OLDER[0]);
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut connection = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    let settings = lab::settings_for(range("20000-29999"));
    let open = || lab::open(lab::Backend::Nftables, &settings, &lab::tools());
    let driver = lab.node.run(open).unwrap();
    let all: BTreeSet<Mapping> = older_mappings().into_iter().collect();
    assert_eq!(*driver.in_other_backends(), all);
    Driver::new(&lab.node, Box::new(driver)).reconcile(&older_mappings());
    connection.goes_on();
    let answer = ask_tcp(&lab.client, at(NODE, 20000)).unwrap();
    assert_eq!(answer, format!("pod1 {CLIENT}"));
    assert!(!lab.rules(flavour).contains("PORTMAPPING"));
}

fn older_rules_are_uninstalled(flavour: Flavour) {
    for rules in OLDER {
        let lab = older_node(flavour, rules);
        lab.node.run(|| uninstall(&lab::tools())).unwrap();
        assert!(!lab.rules(flavour).contains("PORTMAPPING"));
    }
}

fn opening_changes_nothing(flavour: Flavour) {
    let lab = Lab::new();
    let ask = "nft list ruleset; cat /proc/thread-self/net/ip6_tables_names || true";
    let (rules, generation) = (lab.node.sh(ask), generation(&lab));
    let mut driver = lab.driver(flavour);
    driver.observe();
    assert_eq!(lab.node.sh(ask), rules);
    assert_eq!(self::generation(&lab), generation);
}

/// Returns the generation: how often anything was changed in nftables.
fn generation(lab: &Lab) -> Option<u32> {
    use portmapping_dataplane::change_monitor::GenerationSocket;
    lab.node.run(|| GenerationSocket::default().current())
}
