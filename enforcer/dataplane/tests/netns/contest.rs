//! Another program that puts its jumps first each time, as Felix of Calico does.

use std::collections::BTreeSet;

use portmapping_dataplane::{AddressSelection, Flavour, Settings};
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, map, range};
use crate::serve::{ask_tcp, ask_udp, serve};

crate::for_each_flavour!(
    two_programs_that_want_to_be_first_settle,
    opening_changes_no_rule
);

const CHAINS: [&str; 3] = ["PREROUTING", "OUTPUT", "POSTROUTING"];

/// Puts the jumps of the other program first. Returns whether they were not.
fn put_first(lab: &Lab, flavour: Flavour) -> bool {
    let mut wrote = false;
    for program in [
        flavour.to_string(),
        flavour.to_string().replace("ip", "ip6"),
    ] {
        for chain in CHAINS {
            let rules = lab.node.sh(&format!("{program} -w 30 -t nat -S {chain}"));
            let first = rules.lines().find(|line| line.starts_with("-A "));
            if first.is_some_and(|rule| rule.contains("cali-")) {
                continue;
            }
            let jump = format!("{chain} -m comment --comment cali:{chain} -j cali-{chain}");
            let at = jump.replacen(&format!("{chain} "), &format!("{chain} 1 "), 1);
            lab.node.sh(&format!(
                "{program} -w 30 -t nat -N cali-{chain} 2>/dev/null || true
                 {program} -w 30 -t nat -D {jump} 2>/dev/null || true
                 {program} -w 30 -t nat -I {at}"
            ));
            wrote = true;
        }
    }
    wrote
}

fn two_programs_that_want_to_be_first_settle(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let mut driver = lab.driver(flavour);
    let first = [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ];
    driver.reconcile(&first);
    let mut rewrites = 0;
    for _ in 0..6 {
        let rewritten = put_first(&lab, flavour);
        rewrites += usize::from(rewritten);
        let observed = driver.observe();
        assert!(observed.intact, "the order of rules is no damage");
        assert_eq!(observed.contested, rewritten && rewrites == 2);
        for address in [NODE, NODE_V6] {
            assert!(ask_tcp(&lab.client, at(address, 20000)).is_ok());
        }
    }
    assert_eq!(rewrites, 2);
    // later changes leave the order as it is, and still repair what is missing
    let all = [first.as_slice(), &[map(Tcp, 20001, POD2, 9040)]].concat();
    driver.reconcile(&all);
    assert!(!put_first(&lab, flavour), "moved again");
    lab.iptables(flavour, "-t nat -D PREROUTING 2");
    assert!(!driver.observe().intact);
    driver.repair(&all);
    for (port, pod) in [(20000, "pod1"), (20001, "pod2")] {
        let answer = ask_tcp(&lab.client, at(NODE, port)).unwrap();
        assert!(answer.starts_with(pod), "{answer}");
    }
    let answer = ask_udp(&lab.client, at(NODE, 20000)).unwrap();
    assert!(answer.starts_with("pod1"), "{answer}");
}

/// An enforcer that rehearses its start must not write while its predecessor does.
fn opening_changes_no_rule(flavour: Flavour) {
    let lab = Lab::new();
    // the addresses are not known at the start, so the rules are read a second time with those found
    let unknown = Settings {
        selection: AddressSelection::Node,
        host_addresses: BTreeSet::new(),
        ..Settings::new(range("20000-29999"))
    };
    let mut driver = lab.driver_with(flavour, &unknown);
    driver.name_addresses(&[NODE, NODE_V6]);
    let mappings = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)];
    driver.reconcile(&mappings);
    put_first(&lab, flavour);
    let before = lab.rules(flavour);
    let mut successor = lab.driver_with(flavour, &unknown);
    assert_eq!(lab.rules(flavour), before);
    // and the first change puts the jumps first
    successor.repair(&mappings);
    assert!(put_first(&lab, flavour), "our jumps are not first");
}
