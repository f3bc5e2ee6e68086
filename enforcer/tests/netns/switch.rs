//! A node that changes from one kind of iptables to the other.

use portmapping_enforcer::dataplane::Tools;
use portmapping_enforcer::dataplane::iptables::{Flavour, uninstall};
use portmapping_shared::Protocol::Tcp;

use crate::lab::{Lab, NODE, POD1, POD1_V6, POD2, at, map};
use crate::serve::{Conversation, ask_tcp, assert_refused, serve};

crate::for_each_flavour!(
    mappings_move_over,
    leftovers_are_no_whole_frame,
    uninstall_clears_both
);

fn mappings_move_over(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mappings = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)];
    let ended = map(Tcp, 20001, POD2, 9040);
    lab.driver(flavour.other())
        .reconcile(&[&mappings[..], &[ended]].concat());
    let mut conversation = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    lab.driver(flavour).reconcile(&mappings);
    conversation.goes_on();
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    assert_refused(&lab.client, at(NODE, 20001));
    assert!(!lab.rules(flavour.other()).contains("PORTMAPPING"));
}

fn leftovers_are_no_whole_frame(flavour: Flavour) {
    let lab = Lab::new();
    lab.driver(flavour.other())
        .reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    // no pod wants anything any more, so nothing but this makes the reconciler act
    let mut driver = lab.driver(flavour);
    assert!(!driver.observe().intact);
    driver.reconcile(&[]);
    assert!(!lab.rules(flavour.other()).contains("PORTMAPPING"));
}

fn uninstall_clears_both(flavour: Flavour) {
    let lab = Lab::new();
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    lab.driver(flavour).reconcile(&mappings);
    // rules of the other flavour that appeared later, from an older run's backup for example
    let saved = lab.node.sh(&format!("{flavour}-save -t nat"));
    lab.node
        .feed(&format!("{}-restore", flavour.other()), &[], &saved);
    assert!(lab.rules(flavour.other()).contains("PORTMAPPING"));
    lab.node.run(|| uninstall(&Tools::default())).unwrap();
    for flavour in Flavour::ALL {
        assert!(!lab.rules(flavour).contains("PORTMAPPING"));
    }
}
