//! A driver that got ready for a change, and one that is looked at beside changes.

use std::time::{Duration, Instant};
use std::{fs, thread};

use portmapping_shared::Protocol::{Tcp, Udp};

use crate::lab::{Backend, Driver, Lab, NODE, NODE_V6, POD1, POD1_V6, POD2, at, map};
use crate::serve::{ask_tcp, serve};

crate::for_each_backend!(
    changes_what_is_there_by_then,
    is_ready_anew_after_its_program_was_killed,
    takes_no_look_that_a_change_overtook,
);

/// Programs that wait for a transaction, of this process and in the node's network.
fn waiting(lab: &Lab) -> Vec<i32> {
    let ours = std::process::id().to_string();
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let node = lab.node.run(|| network("thread-self")).expect("a network");
    let processes = fs::read_dir("/proc").expect("list /proc").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let of_ours = pids.filter(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parent.is_some_and(|parent| parent.trim() == ours)
            && command.contains("-restore")
            && network(pid) == Some(node.clone())
    });
    of_ours.map(|pid| pid.parse().expect("a number")).collect()
}

/// As many as there are transactions to wait for: one per family, none without programs.
fn awaited(backend: Backend) -> usize {
    match backend {
        Backend::Iptables(_) => 2,
        Backend::Nftables => 0,
    }
}

/// The programs, once all are there: one that is only just being started has no name yet.
fn await_programs(lab: &Lab, backend: Backend) -> Vec<i32> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let programs = waiting(lab);
        if programs.len() == awaited(backend) {
            return programs;
        }
        assert!(Instant::now() < end, "{programs:?} wait");
        thread::yield_now();
    }
}

fn changes_what_is_there_by_then(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.prepare();
    let mut mappings = vec![map(Tcp, 20000, POD1, 9040)];
    driver.reconcile(&mappings);
    driver.prepare();
    await_programs(&lab, backend);
    // the programs wait since before somebody took everything away
    lab.flush(backend);
    mappings.push(map(Tcp, 20001, POD1_V6, 9040));
    driver.reconcile(&mappings);
    driver.prepare();
    mappings.push(map(Udp, 20002, POD2, 9040));
    driver.reconcile(&mappings);
    for endpoint in [at(NODE, 20000), at(NODE_V6, 20001)] {
        let answer = ask_tcp(&lab.client, endpoint).unwrap();
        assert!(answer.starts_with("pod1"), "{answer}");
    }
    driver.prepare();
    drop(driver);
    assert!(waiting(&lab).is_empty(), "programs wait for nobody");
}

fn is_ready_anew_after_its_program_was_killed(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    let mappings = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20000, POD1_V6, 9040)];
    driver.reconcile(&mappings);
    driver.prepare();
    let kill = |driver: &mut Driver<'_>| {
        driver.prepare();
        for pid in await_programs(&lab, backend) {
            lab.node.sh(&format!("kill -9 {pid}"));
            // until it is seen that it is gone
            let end = Instant::now() + Duration::from_secs(10);
            while !fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.contains(") Z "))
            {
                assert!(Instant::now() < end, "{pid} outlives its end");
                thread::yield_now();
            }
        }
    };
    kill(&mut driver);
    driver.reconcile(&mappings[..1]);
    kill(&mut driver);
    driver.prepare();
    driver.reconcile(&mappings);
}

fn takes_no_look_that_a_change_overtook(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    let mappings = [map(Tcp, 20000, POD1, 9040), map(Tcp, 20001, POD2, 9040)];
    driver.reconcile(&mappings[..1]);
    let before = driver.look();
    driver.create(&mappings[1..]);
    match (driver.looked(before), backend) {
        (None, Backend::Iptables(_)) => {}
        // read when it was taken in
        (Some(seen), Backend::Nftables) => assert_eq!(seen.mappings.len(), 2),
        (seen, _) => panic!("{seen:?}"),
    }
    let after = driver.look();
    let seen = driver.looked(after).expect("nothing was changed since");
    assert!(seen.intact);
    assert_eq!(seen.mappings, mappings.into());
    // and what was believed stays true: single rules go in behind those that are there
    driver.remove(&[map(Tcp, 20001, POD2, 9040)]);
    driver.assert_is(&[map(Tcp, 20000, POD1, 9040)].into());
}
