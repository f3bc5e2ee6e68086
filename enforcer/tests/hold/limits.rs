//! Limits of open files, and as many ports as they allow.

use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};
use portmapping_keeper::wire::{Errno, HoldOutcome};
use portmapping_shared::Protocol::Tcp;

use crate::world::{Node, block_on, eventually, in_netns, ports};

#[test]
fn range_over_the_hard_limit_is_refused_with_the_numbers() {
    in_netns(|| {
        let node = Node::new();
        let limited = ["prlimit", "--nofile=5000:5000"];
        let mut keeper = node.spawn("a", &node.run_dir(), &limited);
        assert!(!keeper.wait().success());
        let log = keeper.log();
        for part in ["20000-29999", "10000 ports", "5000 open files", "4936"] {
            assert!(log.contains(part), "{part} missing in: {log}");
        }
    });
}

#[test]
fn soft_limit_is_raised_and_the_hard_one_answered_as_a_refusal() {
    in_netns(|| {
        let node = Node::new();
        let limited = ["prlimit", "--nofile=100:10100"];
        let keeper = node.spawn("a", &node.run_dir(), &limited);
        let wanted = ports(Tcp, 20000, 10100);
        let outcomes = block_on(keeper.client().hold(&wanted)).unwrap();
        let held = outcomes
            .iter()
            .take_while(|outcome| **outcome == HoldOutcome::Held)
            .count();
        assert_eq!(held, 10036);
        let full = HoldOutcome::Refused(Errno(nix::errno::Errno::EMFILE as i32));
        assert!(outcomes[held..].iter().all(|outcome| *outcome == full));
        // connections still get through
        assert_eq!(keeper.list().unwrap().len(), held);
        // and a keeper with less room leaves them where they are
        let mut smaller = node.spawn("b", &node.run_dir(), &["prlimit", "--nofile=10064:10064"]);
        assert!(!smaller.wait().success());
        assert!(smaller.log().contains("10036 sockets"), "{}", smaller.log());
        eventually("the first goes on", || {
            keeper.list().filter(|ports| ports.len() == held)
        });
    });
}

#[test]
fn as_many_ports_as_the_limit_allows_are_held_and_handed_over() {
    in_netns(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let count = u16::try_from(hard.saturating_sub(100).min(19_900)).unwrap();
        let all = ports(Tcp, 20000, count);
        let node = Node::new();
        let old = node.keeper("old");
        let start = Instant::now();
        old.hold(&all);
        let held = start.elapsed();
        let start = Instant::now();
        let new = node.keeper("new");
        let handed_over = start.elapsed();
        assert_eq!(new.list().unwrap(), all);
        println!(
            "{count} ports held in {held:?}, a new keeper has them {handed_over:?} after its start"
        );
    });
}
