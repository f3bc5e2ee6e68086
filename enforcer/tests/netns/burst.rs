//! Many mappings at once: all live after one transaction. Times are printed, not judged.

use std::time::Instant;

use portmapping_enforcer::dataplane::iptables::Settings;
use portmapping_shared::Mapping;
use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Backend, Lab, NODE, POD1, POD2, at, map, range};
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
    let mut driver = lab.driver_with(backend, Settings::new(range("20000-29999")));
    let mut timed = |what: &str, work: &mut dyn FnMut(&mut crate::lab::Driver<'_>)| {
        let start = Instant::now();
        work(&mut driver);
        println!("{backend}: {what} {:?}", start.elapsed());
    };
    let one = [map(Tcp, 20000, POD1, 9040)];
    timed(
        "skeleton of 10,000 ports and the first mapping",
        &mut |driver| driver.create(&one),
    );
    timed("observe, one mapping", &mut |driver| _ = driver.observe());
    let rest: Vec<Mapping> = (20001..29999)
        .map(|port| map(Tcp, port, POD1, 9040))
        .collect();
    timed("9,998 more mappings", &mut |driver| driver.create(&rest));
    let last = [map(Tcp, 29999, POD1, 9040)];
    timed("one more at 9,999", &mut |driver| driver.create(&last));
    timed("observe 10,000", &mut |driver| {
        assert_eq!(driver.observe().mappings.len(), 10_000);
    });
    timed("one less at 10,000", &mut |driver| driver.remove(&last));
    assert!(
        ask_tcp(&lab.client, at(NODE, 29998))
            .unwrap()
            .starts_with("pod1")
    );
    lab.flush(backend);
    timed("all back after a flush", &mut |driver| {
        driver.reconcile(&[&one[..], &rest].concat());
    });
    timed("uninstall", &mut |driver| driver.uninstall());
}
