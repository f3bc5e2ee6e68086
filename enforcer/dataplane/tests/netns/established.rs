//! Connections survive everything except the end of their pod.

use portmapping_shared::Protocol::Tcp;

use crate::lab::{Backend, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, iptables_of, map};
use crate::serve::{Conversation, serve};

crate::for_each_backend!(
    survive_changes_of_other_mappings,
    survive_repairs_and_uninstall
);

fn survive_changes_of_other_mappings(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mine = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)];
    let mut driver = lab.driver(backend);
    driver.reconcile(&mine);
    let mut v4 = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    let mut v6 = Conversation::open(&lab.client, at(NODE_V6, 20000)).unwrap();
    let mut both_go_on = || {
        v4.goes_on();
        v6.goes_on();
    };
    // one mapping in the same leaf, and one in a distant leaf
    let others = [map(Tcp, 20001, POD2, 9040), map(Tcp, 29999, POD2, 9040)];
    driver.create(&others);
    both_go_on();
    driver.remove(&others);
    both_go_on();
    let mut restarted = lab.driver(backend);
    restarted.reconcile(&mine);
    both_go_on();
}

fn survive_repairs_and_uninstall(backend: Backend) {
    let lab = Lab::new();
    // the kernel tracks and translates connections while some rule needs it; every node has such
    // rules of other programs, here these
    for rule in [
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-t nat -A POSTROUTING -s 192.0.2.1 -j MASQUERADE",
    ] {
        lab.iptables(iptables_of(backend), rule);
    }
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    driver.reconcile(&mappings);
    let mut conversation = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    lab.flush(backend);
    conversation.goes_on();
    driver.reconcile(&mappings);
    conversation.goes_on();
    driver.uninstall();
    conversation.goes_on();
}
