//! The limit of open files, and as many ports as it allows.

use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};
use portmapping_keeper::wire::{Errno, HoldOutcome};
use portmapping_shared::Protocol::Tcp;

use crate::world::{Node, block_on, eventually, in_netns, ports, slowness};

#[test]
fn a_range_over_the_hard_limit_is_refused_with_numbers() {
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
fn soft_limit_is_raised_and_ports_over_the_hard_limit_are_refused() {
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
        // a keeper with a lower limit takes nothing over
        let smaller = node.spawn("b", &node.run_dir(), &["prlimit", "--nofile=10064:10064"]);
        let refused = block_on(smaller.client().take_over()).unwrap_err();
        assert!(refused.to_string().contains("10036 sockets"), "{refused}");
        eventually("the first goes on", || {
            keeper.list().filter(|ports| ports.len() == held)
        });
    });
}

#[test]
fn all_ports_that_fit_into_the_limit_are_held_and_handed_over() {
    in_netns(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // a handover has a limit of its own, which an emulated machine keeps with fewer ports
        let most = 19_900 / u64::from(slowness());
        let count = u16::try_from(hard.saturating_sub(100).min(most)).unwrap();
        let all = ports(Tcp, 20000, count);
        let node = Node::new();
        let old = node.keeper("old");
        let start = Instant::now();
        old.hold(&all);
        let held = start.elapsed();
        let start = Instant::now();
        let new = node.successor("new");
        let handed_over = start.elapsed();
        assert_eq!(new.list().unwrap(), all);
        println!(
            "{count} ports held in {held:?}, a new keeper has them {handed_over:?} after its start"
        );
    });
}

/// Starts a keeper whose run directory is a mount of its own; returns its log after it has failed.
fn log_with_run_dir(mount_options: &str) -> String {
    in_netns(|| {
        let node = Node::new();
        std::fs::create_dir(node.run_dir()).unwrap();
        let run_dir = node.run_dir().display().to_string();
        let mount = format!("mount -t tmpfs -o {mount_options} tmpfs {run_dir} && exec \"$@\"");
        let wrapper = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
        let mut keeper = node.spawn("a", &node.run_dir(), &wrapper);
        assert!(!keeper.wait().success());
        keeper.log()
    })
}

#[test]
fn a_read_only_run_directory_is_named_with_the_remedy() {
    let log = log_with_run_dir("ro,mode=0700");
    assert!(log.contains("mount it read-write"), "{log}");
}

#[test]
fn a_full_file_system_is_named_with_the_remedy() {
    // room for the root directory only
    let log = log_with_run_dir("nr_inodes=1,mode=0700");
    assert!(log.contains("free space or inodes"), "{log}");
}
