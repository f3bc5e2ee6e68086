//! Many mappings at once: all answer after one transaction. Times are printed, not asserted.

use std::time::Instant;

use portmapping_dataplane::Flavour;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{self, Backend, Lab, NODE, POD1, POD2, at, map, range};
use crate::serve::{ask_tcp, ask_udp, serve};

crate::for_each_backend!(many_mappings_in_one_change, every_port_of_a_large_range);

fn many_mappings_in_one_change(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let _pod2 = serve(&lab.pod2, "pod2", 9040);
    let mut driver = lab.driver(backend);
    let pod = |n: u16| if n.is_multiple_of(2) { POD1 } else { POD2 };
    let protocol = |n: u16| if n.is_multiple_of(5) { Udp } else { Tcp };
    let mappings: Vec<Mapping> = (0..250)
        .map(|n| map(protocol(n), 20000 + 37 * n, pod(n), 9040))
        .collect();
    let start = Instant::now();
    driver.create(&mappings);
    println!("{backend}: frame and 250 mappings {:?}", start.elapsed());
    driver.assert_is(&mappings.iter().cloned().collect());
    for n in 0..250 {
        let to = at(NODE, 20000 + 37 * n);
        let answer = if protocol(n) == Udp {
            ask_udp(&lab.client, to)
        } else {
            ask_tcp(&lab.client, to)
        };
        let expected = if n.is_multiple_of(2) { "pod1" } else { "pod2" };
        assert!(answer.unwrap().starts_with(expected), "{to}");
    }
    let start = Instant::now();
    driver.remove(&mappings);
    println!("{backend}: 250 mappings removed {:?}", start.elapsed());
    driver.assert_is(&[].into());
}

fn every_port_of_a_large_range(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver_with(backend, &lab::settings_for(range("20000-39999")));
    let mut timed = |what: &str, work: &mut dyn FnMut(&mut crate::lab::Driver<'_>)| {
        let start = Instant::now();
        work(&mut driver);
        println!("{backend}: {what} {:?}", start.elapsed());
    };
    let map = |ports: std::ops::Range<u16>| -> Vec<Mapping> {
        ports.map(|port| map(Tcp, port, POD1, 9040)).collect()
    };
    timed(
        "skeleton of 20,000 ports and the first mapping",
        &mut |driver| driver.create(&map(20000..20001)),
    );
    timed("observe, one mapping", &mut |driver| _ = driver.observe());
    timed("4,999 more", &mut |driver| {
        driver.create(&map(20001..25000));
    });
    let burst: Vec<Mapping> = map(25000..39997)
        .into_iter()
        .step_by(29)
        .take(500)
        .collect();
    timed("500 more at 5,000", &mut |driver| driver.create(&burst));
    timed("500 less at 5,500", &mut |driver| driver.remove(&burst));
    timed("14,999 more", &mut |driver| {
        driver.create(&map(25000..39999));
    });
    let last = map(39999..40000);
    for _ in 0..3 {
        timed("one more at 19,999", &mut |driver| driver.create(&last));
        timed("one less at 20,000", &mut |driver| driver.remove(&last));
    }
    timed("the last", &mut |driver| driver.create(&last));
    timed("observe 20,000", &mut |driver| {
        assert_eq!(driver.observe().mappings.len(), 20_000);
    });
    assert!(
        ask_tcp(&lab.client, at(NODE, 39999))
            .unwrap()
            .starts_with("pod1")
    );
    let all = map(20000..40000);
    match backend {
        Backend::Iptables(Flavour::Legacy) => lab.flush(backend),
        _ => _ = lab.node.sh("nft flush ruleset"),
    }
    timed("all back after a flush", &mut |driver| driver.repair(&all));
    timed("and nothing is left to do", &mut |driver| {
        driver.assert_is(&all.iter().cloned().collect());
    });
    timed("uninstall", &mut |driver| driver.uninstall());
}
