//! Ranges of any size, and a range that changes between two runs.

use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{self, Backend, Lab, NODE, POD1, POD2, at, map, range};
use crate::serve::{ask_tcp, ask_udp, assert_refused, serve};

crate::for_each_backend!(
    first_and_last_port_of_any_range_answer,
    old_range_is_kept_and_removable
);

fn first_and_last_port_of_any_range_answer(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    for text in [
        "20000",
        "20000-20001",
        "30000-30026",
        "40000-40999",
        "60000-65535",
    ] {
        let range = range(text);
        let mut driver = lab.driver_with(backend, &lab::settings_for(range));
        println!("{range:?}");
        let (first, last) = (range.first().get(), range.last().get());
        driver.reconcile(&[map(Tcp, first, POD1, 9040), map(Tcp, last, POD1, 9040)]);
        for port in [first, last] {
            assert!(
                ask_tcp(&lab.client, at(NODE, port))
                    .unwrap()
                    .starts_with("pod1"),
                "{port}"
            );
        }
    }
}

fn old_range_is_kept_and_removable(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let old = [map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)];
    lab.driver(backend).reconcile(&old);
    let mut driver = lab.driver_with(backend, &lab::settings_for(range("40000-40999")));
    let seen = driver.observe();
    assert_eq!(seen.mappings, old.iter().cloned().collect());
    assert!(!seen.intact, "the tree is that of another range");
    let new = map(Tcp, 40999, POD2, 9040);
    driver.reconcile(&[&old[..], std::slice::from_ref(&new)].concat());
    assert!(
        ask_tcp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    assert!(
        ask_udp(&lab.client, at(NODE, 20000))
            .unwrap()
            .starts_with("pod1")
    );
    assert!(
        ask_tcp(&lab.client, at(NODE, 40999))
            .unwrap()
            .starts_with("pod2")
    );
    assert!(
        !lab.rules(backend).contains("20000-"),
        "chains of the old range remain"
    );
    driver.reconcile(&[new]);
    assert_refused(&lab.client, at(NODE, 20000));
    assert!(
        !lab.rules(backend).contains("OTHER"),
        "the chain for other ports remains"
    );
}
