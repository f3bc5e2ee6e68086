//! Layouts of iptables rules: the usual one, that of kernels without `xt_bpf`, that of older
//! versions, and the ways from one to another.

use std::collections::BTreeSet;

use portmapping_dataplane::iptables::Flavour;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{
    CLIENT, CLIENT_V6, Driver, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, POD2_V6, at, map,
};
use crate::programs::Programs;
use crate::serve::{Conversation, ask_tcp, ask_udp, serve};

crate::for_each_flavour!(
    only_what_a_pod_sends_itself_is_masqueraded,
    pod_reaches_itself_without_comparison,
    rules_of_an_older_version_are_taken_over,
    both_ways_to_masquerade_follow_each_other,
    finding_out_changes_nothing,
);

fn mappings() -> Vec<Mapping> {
    vec![
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20001, POD2, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ]
}

/// Programs as where iptables or the kernel lacks the match that compares addresses.
fn without_comparison(flavour: Flavour) -> Programs {
    let programs = Programs::new(flavour);
    for family in ["iptables", "ip6tables"] {
        let restore = format!("{flavour}-restore").replace("iptables", family);
        programs.replace(
            &restore,
            &format!(
                "text=$(cat)
                case $text in *'-m bpf'*) echo 'Could not load match bpf' >&2; exit 2;; esac
                printf '%s\\n' \"$text\" | /usr/sbin/{restore} \"$@\""
            ),
        );
    }
    programs
}

fn driver<'a>(lab: &'a Lab, flavour: Flavour, programs: &Programs) -> Driver<'a> {
    let driver = lab.node.run(|| programs.open(flavour)).unwrap();
    Driver::new(&lab.node, Box::new(driver))
}

/// Packets that the rule has masqueraded, of both families.
fn compared_equal(lab: &Lab, flavour: Flavour) -> Vec<u32> {
    let save = format!("{flavour}-save -c -t nat");
    let text = lab.node.sh(&format!(
        "{save}; {}",
        save.replace("iptables", "ip6tables")
    ));
    let rules = text.lines().filter(|line| line.contains("-m bpf "));
    rules
        .map(|rule| {
            let counter = rule.trim_start_matches('[').split(':').next().unwrap();
            counter.parse().unwrap()
        })
        .collect()
}

fn only_what_a_pod_sends_itself_is_masqueraded(flavour: Flavour) {
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
    // somebody else's translation, of what the node sends itself
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
        // untranslated, and translated by others
        for port in [9041, 9999] {
            let answer = ask_tcp(&lab.node, at(node, port)).unwrap();
            assert_eq!(answer, format!("node {node}"));
        }
        ask_tcp(&lab.node, at(node, 20000)).unwrap();
    }
    assert_eq!(compared_equal(&lab, flavour), [0, 0]);
    pod1(&lab.pod1, NODE, "10.88.0.1");
    pod1(&lab.pod1, NODE_V6, "fd88::1");
    assert_eq!(compared_equal(&lab, flavour), [1, 1]);
    assert_eq!(
        ask_udp(&lab.pod1, at(NODE, 20000)).unwrap(),
        "pod1 10.88.0.1"
    );
    assert_eq!(compared_equal(&lab, flavour), [2, 1]);
}

fn pod_reaches_itself_without_comparison(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let programs = without_comparison(flavour);
    let mut driver = driver(&lab, flavour, &programs);
    driver.reconcile(&mappings());
    assert!(!lab.rules(flavour).contains("-m bpf"));
    for (node, seen) in [(NODE, "pod1 10.88.0.1"), (NODE_V6, "pod1 fd88::1")] {
        assert_eq!(ask_tcp(&lab.pod1, at(node, 20000)).unwrap(), seen);
    }
    assert_eq!(
        ask_tcp(&lab.client, at(NODE, 20000)).unwrap(),
        format!("pod1 {CLIENT}")
    );
    let first = [mappings()[0].clone()];
    driver.remove(&first);
    driver.create(&first);
    driver.assert_is(&mappings().into_iter().collect());
    driver.reconcile(&[]);
    assert!(!lab.rules(flavour).contains("-g PORTMAPPING-HAIRPIN"));
}

/// The rules as older versions made them: each carries its owner, and each pod has a rule.
fn old_rules(flavour: Flavour, family: &str) -> String {
    let lab = Lab::new();
    driver(&lab, flavour, &without_comparison(flavour)).reconcile(&mappings());
    let save = format!("{flavour}-save -t nat").replace("iptables", family);
    let text = lab.node.sh(&save);
    let lines = text
        .lines()
        .filter(|line| !line.contains("PORTMAPPING-UID"));
    let lines = lines.map(|line| {
        let Some((rule, to)) = line.split_once(" -j DNAT ") else {
            return format!("{line}\n");
        };
        let mapping = mappings().into_iter().find(|m| {
            let ip = m.pod_ip.to_string();
            to.contains(&format!("{ip}:")) || to.contains(&format!("[{ip}]"))
        });
        let owner = mapping.unwrap().owner;
        format!("{rule} -m comment --comment \"portmapping:{owner}\" -j DNAT {to}\n")
    });
    lines.collect()
}

fn has_old_rules(rules: &str) -> bool {
    let is_old = |line: &str| {
        line.contains("PORTMAPPING-HAIRPIN")
            || line.contains("--comment") && line.contains("-j DNAT")
    };
    rules.lines().any(is_old)
}

fn rules_of_an_older_version_are_taken_over(flavour: Flavour) {
    let old = ["iptables", "ip6tables"].map(|family| (family, old_rules(flavour, family)));
    let lab = || {
        let lab = Lab::new();
        for (family, rules) in &old {
            let restore = format!("{flavour}-restore").replace("iptables", family);
            lab.node.feed(&restore, &[], rules);
        }
        assert!(has_old_rules(&lab.rules(flavour)));
        lab
    };
    let all: BTreeSet<Mapping> = mappings().into_iter().collect();
    // a plain restart, and changes of the one kind and the other
    let node = lab();
    let _servers = [
        serve(&node.pod1, "pod1", 9040),
        serve(&node.pod2, "pod2", 9040),
    ];
    let mut conversation = Conversation::open(&node.client, at(NODE, 20000)).unwrap();
    let mut driver = node.driver(flavour);
    assert_eq!(driver.observe().mappings, all);
    driver.reconcile(&mappings());
    assert!(!has_old_rules(&node.rules(flavour)));
    conversation.goes_on();
    for (address, seen) in [(NODE, "pod1 10.88.0.1"), (NODE_V6, "pod1 fd88::1")] {
        assert_eq!(ask_tcp(&node.pod1, at(address, 20000)).unwrap(), seen);
    }
    let answer = ask_tcp(&node.client, at(NODE, 20001)).unwrap();
    assert_eq!(answer, format!("pod2 {CLIENT}"));
    let (more, less) = ([map(Tcp, 20002, POD2, 9040)], [mappings()[2].clone()]);
    for adds in [true, false] {
        let node = lab();
        let mut driver = node.driver(flavour);
        assert_eq!(driver.observe().mappings, all);
        if adds {
            driver.create(&more);
            driver.assert_is(&all.iter().chain(&more).cloned().collect());
        } else {
            driver.remove(&less);
            let rest = all.iter().filter(|mapping| **mapping != less[0]);
            driver.assert_is(&rest.cloned().collect());
        }
        // one family's change is no change of the other
        let v4 = format!("{flavour}-save -t nat");
        assert!(!has_old_rules(&node.node.sh(&v4)));
    }
    // and nothing of either is left behind
    let node = lab();
    node.driver(flavour).uninstall();
    assert!(!node.rules(flavour).contains("PORTMAPPING"));
}

fn both_ways_to_masquerade_follow_each_other(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let without = without_comparison(flavour);
    let mut compares = false;
    for _ in 0..2 {
        for programs in [&without, &Programs::new(flavour)] {
            let mut driver = driver(&lab, flavour, programs);
            driver.reconcile(&mappings());
            let rules = lab.rules(flavour);
            assert_eq!(rules.contains("-m bpf"), compares);
            assert_eq!(rules.contains("PORTMAPPING-HAIRPIN"), !compares);
            for (node, seen) in [(NODE, "pod1 10.88.0.1"), (NODE_V6, "pod1 fd88::1")] {
                assert_eq!(ask_tcp(&lab.pod1, at(node, 20000)).unwrap(), seen);
            }
            compares = !compares;
        }
    }
    lab.driver(flavour).uninstall();
    assert!(!lab.rules(flavour).contains("PORTMAPPING"));
}

fn finding_out_changes_nothing(flavour: Flavour) {
    let lab = Lab::new();
    let ask = "nft list ruleset; cat /proc/thread-self/net/ip6_tables_names || true";
    let (rules, generation) = (lab.node.sh(ask), generation(&lab));
    let mut driver = lab.driver(flavour);
    driver.observe();
    assert_eq!(lab.node.sh(ask), rules);
    assert_eq!(self::generation(&lab), generation);
}

/// How often anything was changed in nftables.
fn generation(lab: &Lab) -> Option<u32> {
    use portmapping_dataplane::generation::GenerationSocket;
    lab.node.run(|| GenerationSocket::default().current())
}
