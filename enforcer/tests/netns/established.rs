//! Connections live through everything that is not the end of their pod.

use portmapping_enforcer::dataplane::iptables::Flavour;
use portmapping_shared::Protocol::Tcp;

use crate::lab::{Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, map};
use crate::serve::{Conversation, serve};

crate::for_each_flavour!(
    survive_changes_of_other_mappings,
    survive_repairs_and_uninstall
);

fn survive_changes_of_other_mappings(flavour: Flavour) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mine = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)];
    let mut driver = lab.driver(flavour);
    driver.reconcile(&mine);
    let mut v4 = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    let mut v6 = Conversation::open(&lab.client, at(NODE_V6, 20000)).unwrap();
    let mut both_go_on = || {
        v4.goes_on();
        v6.goes_on();
    };
    // the same leaf, and one far away
    let others = [map(Tcp, 20001, POD2, 9040), map(Tcp, 29999, POD2, 9040)];
    driver.create(&others);
    both_go_on();
    driver.remove(&others);
    both_go_on();
    let mut restarted = lab.driver(flavour);
    restarted.reconcile(&mine);
    both_go_on();
}

fn survive_repairs_and_uninstall(flavour: Flavour) {
    let lab = Lab::new();
    // the kernel tracks connections while some rule asks for it; every node has such a rule of
    // others, here it is this one
    lab.iptables(
        flavour,
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    );
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(flavour);
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    driver.reconcile(&mappings);
    let mut conversation = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    lab.iptables(flavour, "-t nat -F");
    conversation.goes_on();
    driver.reconcile(&mappings);
    conversation.goes_on();
    driver.uninstall();
    conversation.goes_on();
}
