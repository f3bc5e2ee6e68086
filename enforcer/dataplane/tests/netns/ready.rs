//! A driver that is read at the same time as it changes rules.

use portmapping_shared::Protocol::Tcp;

use crate::lab::{Backend, Lab, POD1, POD2, map};

crate::for_each_backend!(takes_no_look_that_a_change_overtook,);

fn takes_no_look_that_a_change_overtook(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    let mappings = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20001, POD2, 9040)];
    driver.reconcile(&mappings[..1]);
    let before = driver.begin_read();
    driver.create(&mappings[1..]);
    match (driver.finish_read(before), backend) {
        (None, Backend::Iptables(_)) => {}
        // read when it was taken in
        (Some(seen), Backend::Nftables) => assert_eq!(seen.mappings.len(), 2),
        (seen, _) => panic!("{seen:?}"),
    }
    let after = driver.begin_read();
    let seen = driver
        .finish_read(after)
        .expect("nothing was changed since");
    assert!(seen.intact);
    assert_eq!(seen.mappings, mappings.into());
    // and what was believed stays true: single rules go in behind those that are there
    driver.remove(&[map(Tcp, 20001, POD2, 9040)]);
    driver.assert_is(&[map(Tcp, 20000, POD1, 9040)].into());
}
