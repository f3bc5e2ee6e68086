//! A mapped port answers, from outside and from the node, and the pod sees its client.

use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{
    Backend, CLIENT, CLIENT_V6, Lab, NODE, NODE_V6, OTHER_NODE_ADDRESS, POD1, POD1_V6, POD2, at,
    map,
};
use crate::serve::{ask_tcp, ask_udp, assert_refused, serve};

crate::for_each_backend!(
    answers_from_outside,
    answers_the_node_itself,
    answers_at_every_address_of_the_node,
    leaves_other_ports_alone,
);

fn answers_from_outside(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    lab.driver(backend).reconcile(&[
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 29999, POD2, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
        map(Udp, 20000, POD1_V6, 9040),
    ]);
    let seen = format!("pod1 {CLIENT}");
    assert_eq!(ask_tcp(&lab.client, at(NODE, 20000)).unwrap(), seen);
    assert_eq!(ask_udp(&lab.client, at(NODE, 20000)).unwrap(), seen);
    assert_eq!(
        ask_tcp(&lab.client, at(NODE, 29999)).unwrap(),
        format!("pod2 {CLIENT}")
    );
    let seen = format!("pod1 {CLIENT_V6}");
    assert_eq!(ask_tcp(&lab.client, at(NODE_V6, 20000)).unwrap(), seen);
    assert_eq!(ask_udp(&lab.client, at(NODE_V6, 20000)).unwrap(), seen);
}

fn answers_the_node_itself(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    lab.driver(backend).reconcile(&[
        map(Tcp, 23456, POD1, 9040),
        map(Udp, 23456, POD1, 9040),
        map(Tcp, 23456, POD1_V6, 9040),
    ]);
    let seen = format!("pod1 {NODE}");
    assert_eq!(ask_tcp(&lab.node, at(NODE, 23456)).unwrap(), seen);
    assert_eq!(ask_udp(&lab.node, at(NODE, 23456)).unwrap(), seen);
    assert_eq!(
        ask_tcp(&lab.node, at(NODE_V6, 23456)).unwrap(),
        format!("pod1 {NODE_V6}")
    );
}

fn answers_at_every_address_of_the_node(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    lab.driver(backend)
        .reconcile(&[map(Tcp, 23456, POD1, 9040)]);
    for address in [NODE, OTHER_NODE_ADDRESS] {
        assert_eq!(
            ask_tcp(&lab.client, at(address, 23456)).unwrap(),
            format!("pod1 {CLIENT}")
        );
    }
}

fn leaves_other_ports_alone(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _sshd = serve(&lab.node, "node", 22);
    let _forwarded = serve(&lab.pod2, "pod2", 23456);
    lab.driver(backend)
        .reconcile(&[map(Tcp, 23456, POD1, 9040)]);
    assert_refused(&lab.client, at(NODE, 23457));
    assert_eq!(
        ask_tcp(&lab.client, at(NODE, 22)).unwrap(),
        format!("node {CLIENT}")
    );
    // the mapped port at an address that is not the node's
    assert_eq!(
        ask_tcp(&lab.client, at(POD2, 23456)).unwrap(),
        format!("pod2 {CLIENT}")
    );
}
