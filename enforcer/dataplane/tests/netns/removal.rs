//! A port without its mapping refuses connections; other ports still work.

use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Backend, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, map};
use crate::serve::{ask_tcp, ask_udp, assert_refused, serve};

crate::for_each_backend!(removed_port_refuses, last_mapping_leaves_a_whole_frame);

fn removed_port_refuses(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let ended = [
        map(Tcp, 20000, POD1, 9040),
        map(Udp, 20000, POD1, 9040),
        map(Tcp, 20000, POD1_V6, 9040),
    ];
    let living = [map(Tcp, 20001, POD2, 9040), map(Udp, 20001, POD2, 9040)];
    let mut driver = lab.driver(backend);
    driver.reconcile(&[ended.as_slice(), &living].concat());
    ask_tcp(&lab.client, at(NODE, 20000)).unwrap();
    driver.reconcile(&living);
    assert_refused(&lab.client, at(NODE, 20000));
    assert_refused(&lab.client, at(NODE_V6, 20000));
    assert!(ask_udp(&lab.client, at(NODE, 20000)).is_err());
    assert!(
        ask_tcp(&lab.client, at(NODE, 20001))
            .unwrap()
            .starts_with("pod2")
    );
    assert!(
        ask_udp(&lab.client, at(NODE, 20001))
            .unwrap()
            .starts_with("pod2")
    );
}

fn last_mapping_leaves_a_whole_frame(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040)]);
    driver.reconcile(&[]);
    let before = lab.rules(backend);
    driver.reconcile(&[]);
    assert_eq!(lab.rules(backend), before);
}
