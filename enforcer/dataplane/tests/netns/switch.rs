//! A node that changes from one backend or kind of iptables to another.

use std::collections::BTreeSet;

use portmapping_dataplane::Flavour;
use portmapping_dataplane::{Tools, uninstall};
use portmapping_shared::Protocol::{Tcp, Udp};
use portmapping_shared::{Mapping, Plan};

use crate::lab::{self, Backend, Driver, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, map, range};
use crate::serve::{Conversation, UdpClient, ask_tcp, assert_refused, serve};

crate::for_each_backend!(
    mappings_move_to_another_backend,
    mappings_are_read_before_anything_changes,
    leftovers_of_other_backends_count_as_damage,
    old_rules_stay_while_a_mapping_is_refused,
    uninstall_removes_the_rules_of_every_backend,
);

fn others(backend: Backend) -> impl Iterator<Item = Backend> {
    Backend::ALL
        .into_iter()
        .filter(move |other| *other != backend)
}

/// Returns everything of ours on the node.
fn ours(lab: &Lab) -> String {
    let all = [
        lab.rules(Flavour::Nft),
        lab.rules(Flavour::Legacy),
        lab.node.sh("nft list tables"),
    ];
    let lines = all.iter().flat_map(|text| text.lines());
    let ours = lines.filter(|line| line.contains("PORTMAPPING") || line.contains("portmapping"));
    ours.map(|line| line.to_owned() + "\n").collect()
}

fn mappings_move_to_another_backend(backend: Backend) {
    for from in others(backend) {
        let lab = Lab::new();
        let _pod1 = serve(&lab.pod1, "pod1", 9040);
        let mappings = [
            map(Tcp, 20000, POD1, 9040),
            map(Udp, 20000, POD1, 9040),
            map(Tcp, 20000, POD1_V6, 9040),
        ];
        let ended = map(Tcp, 20001, POD2, 9040);
        lab.driver(from)
            .reconcile(&[&mappings[..], &[ended]].concat());
        let mut v4 = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
        let mut v6 = Conversation::open(&lab.client, at(NODE_V6, 20000)).unwrap();
        let datagrams = UdpClient::new(&lab.client, at(NODE, 20000));
        datagrams.hears("pod1");
        lab.driver(backend).reconcile(&mappings);
        v4.goes_on();
        v6.goes_on();
        datagrams.hears("pod1");
        for address in [NODE, NODE_V6] {
            let answer = ask_tcp(&lab.client, at(address, 20000)).unwrap();
            assert!(answer.starts_with("pod1"), "{from} to {backend}: {answer}");
        }
        assert_refused(&lab.client, at(NODE, 20001));
        assert_eq!(lab.driver(from).observe().mappings, [].into());
    }
}

fn mappings_are_read_before_anything_changes(backend: Backend) {
    for from in others(backend) {
        let lab = Lab::new();
        let mappings = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20001, POD1_V6, 9040)];
        lab.driver(from).reconcile(&mappings);
        let before = ours(&lab);
        let settings = lab::settings_for(range("20000-29999"));
        let open = || lab::open(backend, &settings, &lab::tools());
        let migration = lab.node.run(open).unwrap();
        let expected: BTreeSet<Mapping> = mappings.into_iter().collect();
        assert_eq!(
            *migration.in_other_backends(),
            expected,
            "{from} to {backend}"
        );
        assert_eq!(ours(&lab), before, "{from} to {backend}");
    }
}

fn leftovers_of_other_backends_count_as_damage(backend: Backend) {
    for from in others(backend) {
        let lab = Lab::new();
        lab.driver(from).reconcile(&[map(Tcp, 20000, POD1, 9040)]);
        // no pod needs a mapping any more, so only this makes the reconciler act
        let mut driver = lab.driver(backend);
        assert!(!driver.observe().intact);
        driver.reconcile(&[]);
        assert_eq!(ours(&lab), "", "{from} to {backend}");
    }
}

fn old_rules_stay_while_a_mapping_is_refused(backend: Backend) {
    for from in others(backend) {
        let lab = Lab::new();
        let _pod1 = serve(&lab.pod1, "pod1", 9040);
        let [good, bad] = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20001, POD1, 9040)];
        lab.driver(from).reconcile(&[good.clone(), bad.clone()]);
        let mut driver = lab.driver(backend);
        let create = |mappings: &[Mapping]| Plan {
            to_create: mappings.to_vec(),
            ..Plan::default()
        };
        // a mapping that no backend can make causes the first change to fail
        let impossible = Mapping {
            host_ip: Some(crate::lab::ip(NODE_V6)),
            ..map(Tcp, 20002, POD1, 9040)
        };
        driver
            .try_apply(&create(&[bad.clone(), impossible]))
            .unwrap_err();
        driver.try_apply(&create(&[good])).unwrap();
        let still = ask_tcp(&lab.client, at(NODE, 20001)).unwrap();
        assert!(still.starts_with("pod1"), "{from} to {backend}");
        driver.try_apply(&create(&[bad])).unwrap();
        let moved = ask_tcp(&lab.client, at(NODE, 20001)).unwrap();
        assert!(moved.starts_with("pod1"), "{from} to {backend}");
        assert!(lab.driver(from).observe().mappings.is_empty());
    }
}

fn uninstall_removes_the_rules_of_every_backend(backend: Backend) {
    let lab = Lab::new();
    let before = (lab.rules(Flavour::Legacy), lab.rules(Backend::Nftables));
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    lab.driver(backend).reconcile(&mappings);
    // rules of other backends that appeared later, for example from the backup of an earlier run
    let saved = lab.node.sh("nft list ruleset; iptables-legacy-save -t nat");
    for from in others(backend) {
        let fresh = Lab::new();
        fresh.driver(from).reconcile(&mappings);
        match from {
            Backend::Iptables(flavour) => {
                let rules = fresh.node.sh(&format!("{flavour}-save -t nat"));
                lab.node.feed(&format!("{flavour}-restore"), &[], &rules);
            }
            Backend::Nftables => {
                let rules = fresh.node.sh("nft list table inet portmapping");
                lab.node.feed("nft", &["-f", "-"], &rules);
            }
        }
    }
    assert_ne!(
        lab.node.sh("nft list ruleset; iptables-legacy-save -t nat"),
        saved
    );
    lab.node.run(|| uninstall(&lab::tools())).unwrap();
    assert_eq!(ours(&lab), "");
    if backend == Backend::Nftables {
        assert!(before.1.is_empty());
    }
}

#[test]
fn nftables_needs_no_programs_from_opening_to_uninstall() {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let empty = tempfile::tempdir().unwrap();
    let tools = Tools {
        directory: Some(empty.path().to_owned()),
        ..lab::tools()
    };
    let settings = lab::settings_for(range("20000-29999"));
    let open = || lab::open(Backend::Nftables, &settings, &tools);
    let mut driver = Driver::new(&lab.node, Box::new(lab.node.run(open).unwrap()));
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)]);
    assert!(ask_tcp(&lab.client, at(NODE, 20000)).is_ok());
    driver.uninstall();
    lab.node.run(|| uninstall(&tools)).unwrap();
    assert_eq!(lab.rules(Backend::Nftables), "");
    // rules that only iptables can remove are reported
    lab.driver(Flavour::Nft)
        .reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    let error = lab.node.run(|| uninstall(&tools)).unwrap_err().to_string();
    assert!(error.contains("not installed"), "{error}");
}
