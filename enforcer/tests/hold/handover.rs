//! Rolling updates: the ports go from keeper to keeper, and no other process gets one.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use portmapping_enforcer::keeper_client::{KeeperClient, KeeperClientError, RoleWatch};
use portmapping_keeper::wire::{Errno, HoldOutcome, KeeperRole};
use portmapping_shared::PortKey;
use portmapping_shared::Protocol::{Sctp, Tcp, Udp};

use crate::world::{
    KeeperProcess, Node, Prober, bind_any, block_on, eventually, in_netns, patience, ports, soon,
};

/// 2,000 ports with sockets and 300 without, in the order of a list.
pub(crate) fn many() -> Vec<PortKey> {
    [
        ports(Tcp, 20000, 1000),
        ports(Udp, 20500, 1000),
        ports(Sctp, 20000, 300),
    ]
    .concat()
}

/// Those of them that another process could bind.
pub(crate) fn bindable() -> Vec<PortKey> {
    many()
        .into_iter()
        .filter(|(protocol, _)| *protocol != Sctp)
        .collect()
}

fn assert_retired(keeper: &KeeperProcess) {
    block_on(assert_retired_in(&mut keeper.client()));
}

pub(crate) async fn assert_retired_in(client: &mut KeeperClient) {
    let wanted = ports(Tcp, 20000, 1);
    for refused in [
        client.hold(&wanted).await.map(drop),
        client.release(&wanted).await.map(drop),
        client.list().await.map(drop),
    ] {
        assert!(
            matches!(refused, Err(KeeperClientError::Retired { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn ports_stay_held_during_rolling_updates() {
    in_netns(|| {
        let node = Node::new();
        let mut old = node.keeper("0");
        old.hold(&many());
        let prober = Prober::start(bindable());
        for round in 1..=10 {
            let new = node.successor(&round.to_string());
            assert_eq!(new.list().unwrap(), many());
            assert_retired(&old);
            prober.round(2000);
            old.signal(Signal::SIGTERM);
            assert!(old.wait().success());
            assert!(!old.socket.exists());
            assert_eq!(node.peer_sockets().len(), 1);
            prober.round(2000);
            old = new;
        }
        println!("0 thefts in {} tries over 10 handovers", prober.finish());
        // the received sockets can be released
        let mut client = old.client();
        assert_eq!(block_on(client.release(&many())).unwrap(), many().len());
        for port in bindable() {
            // the previous keeper keeps its copies until it has ended
            eventually("the port is free", || bind_any(port).ok());
        }
    });
}

#[test]
fn a_keeper_that_is_ended_first_waits_for_its_successor() {
    in_netns(|| {
        let node = Node::new();
        let mut old = node.keeper("old");
        old.hold(&many());
        let prober = Prober::start(bindable());
        old.signal(Signal::SIGTERM);
        prober.round(2000);
        let new = node.keeper("new");
        assert_eq!(new.list().unwrap(), many());
        assert!(old.wait().success());
        prober.round(2000);
        println!("0 thefts in {} tries", prober.finish());
    });
}

#[test]
fn a_keeper_without_ports_ends_at_once_and_one_without_successor_in_time() {
    in_netns(|| {
        let node = Node::new();
        let mut idle = node.keeper("idle");
        let no_wait = ["env", "PORTMAPPING_SUCCESSOR_WAIT=0"];
        let mut last = node.spawn("last", &node.path("a"), &no_wait);
        last.hold(&ports(Tcp, 20000, 2));
        let wait = ["env", "PORTMAPPING_SUCCESSOR_WAIT=4"];
        let mut alone = node.spawn("alone", &node.path("b"), &wait);
        alone.hold(&ports(Tcp, 21000, 2));
        for keeper in [&idle, &last, &alone] {
            keeper.signal(Signal::SIGTERM);
        }
        let asked = Instant::now();
        for keeper in [&mut idle, &mut last] {
            assert!(keeper.wait().success());
        }
        assert!(alone.wait().success());
        assert!(asked.elapsed() >= Duration::from_secs(4), "it did not wait");
        for port in [ports(Tcp, 20000, 2), ports(Tcp, 21000, 2)].concat() {
            assert!(bind_any(port).is_ok(), "{port:?} is free");
        }
    });
}

#[test]
fn old_keeper_keeps_all_ports_when_the_new_one_is_killed_at_any_moment() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        let prober = Prober::start(bindable());
        for round in 0..40 {
            let new = node.keeper("new");
            let mut client = new.client();
            let asked = thread::spawn(move || block_on(client.take_over()));
            thread::sleep(Duration::from_millis(round)); // varies the moment of the kill
            new.kill();
            drop(asked.join().unwrap());
            let whole = || old.list().filter(|held| *held == many());
            eventually("the old keeper goes on", whole);
        }
        println!("0 thefts in {} tries over 40 kills", prober.finish());
        let new = node.successor("new");
        assert_eq!(new.list().unwrap(), many());
        assert_retired(&old);
    });
}

#[test]
fn old_keeper_becomes_active_when_its_successor_ends_later() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        let new = node.successor("new");
        let released = ports(Tcp, 20000, 1);
        block_on(new.client().release(&released)).unwrap();
        eventually("the old keeper closed its copies", || {
            bind_any(released[0]).ok()
        });
        new.kill();
        eventually("the old keeper answers again", || {
            old.list().filter(Vec::is_empty)
        });
        old.hold(&many());
    });
}

#[test]
fn old_keeper_stays_retired_while_a_later_one_lives() {
    in_netns(|| {
        let node = Node::new();
        let first = node.keeper("1");
        first.hold(&many());
        let second = node.successor("2");
        let third = node.successor("3");
        second.kill();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline {
            assert_retired(&first);
        }
        assert_eq!(third.list().unwrap(), many());
        third.kill();
        eventually("the first answers again", || first.list());
    });
}

#[test]
fn files_of_dead_keepers_and_other_programs_in_the_run_directory_do_no_harm() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        old.kill();
        let stale = node.peer_sockets();
        assert_eq!(stale.len(), 1);
        let run_dir = node.run_dir();
        fs::write(run_dir.join("keeper-0-1.sock"), "no socket").unwrap();
        std::os::unix::fs::symlink("/nowhere", run_dir.join("keeper-2-2.sock")).unwrap();
        // a listening stream socket, and the socket of another program
        let _stream = UnixListener::bind(run_dir.join("keeper-3-3.sock")).unwrap();
        let _other = UnixListener::bind(run_dir.join("other.sock")).unwrap();
        let start = Instant::now();
        let new = node.successor("new");
        assert!(
            start.elapsed() < patience(Duration::from_secs(1)),
            "{:?}",
            start.elapsed()
        );
        assert!(!stale[0].exists());
        assert!(run_dir.join("other.sock").exists());
        new.hold(&many());
    });
}

#[test]
fn a_keeper_that_stops_for_a_moment_keeps_the_node() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        old.signal(Signal::SIGSTOP);
        let new = node.keeper("new");
        let mut client = new.client();
        let refused = block_on(client.take_over());
        assert!(
            matches!(&refused, Err(KeeperClientError::Rejected { message, .. }) if message.contains("handed its ports over")),
            "{refused:?}"
        );
        assert_retired(&new);
        old.signal(Signal::SIGCONT);
        // it may answer a question of before first
        let kept = eventually("the old keeper goes on", || old.list());
        assert_eq!(kept, many());
        new.take_over();
        assert_eq!(new.list().unwrap(), many());
        assert_retired(&old);
    });
}

#[test]
fn a_keeper_that_stays_stopped_is_passed_over_and_asked_again() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        old.signal(Signal::SIGSTOP);
        let prober = Prober::start(bindable());
        let start = Instant::now();
        let new = node.keeper("new");
        block_on(async {
            let mut enforcer = RoleWatch::connect(&new.socket, soon()).await.unwrap();
            assert_eq!(enforcer.next().await.unwrap(), KeeperRole::Retired);
            let active = tokio::time::timeout(soon(), enforcer.next()).await;
            assert_eq!(active.unwrap().unwrap(), KeeperRole::Active);
        });
        assert!(
            start.elapsed() > Duration::from_secs(9),
            "{:?}",
            start.elapsed()
        );
        let refused = block_on(new.client().hold(&ports(Tcp, 20000, 1))).unwrap();
        assert_eq!(
            refused,
            [HoldOutcome::Refused(Errno(
                nix::errno::Errno::EADDRINUSE as i32
            ))]
        );
        old.signal(Signal::SIGCONT);
        eventually("the new keeper has everything", || {
            new.list().filter(|held| *held == many())
        });
        eventually("the old keeper retired", || {
            old.list().is_none().then_some(())
        });
        prober.finish();
    });
}

#[test]
fn ports_of_several_peers_are_taken_over() {
    in_netns(|| {
        let node = Node::new();
        // each in its own directory, then both in one
        let (one, two) = (
            node.spawn("1", &node.run_dir(), &[]),
            node.path("elsewhere"),
        );
        let two = node.spawn("2", &two, &[]);
        one.hold(&ports(Tcp, 20000, 700));
        two.hold(&ports(Tcp, 21000, 700));
        for entry in fs::read_dir(node.path("elsewhere")).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), node.run_dir().join(entry.file_name())).unwrap();
        }
        let new = node.successor("new");
        let all = [ports(Tcp, 20000, 700), ports(Tcp, 21000, 700)].concat();
        assert_eq!(new.list().unwrap(), all);
        // the second finds no other keeper in its own directory, and is soon active again there
        assert_retired(&one);
    });
}

#[test]
fn one_of_several_keepers_that_start_together_gets_all_ports() {
    in_netns(|| {
        let node = Node::new();
        let old = node.keeper("old");
        old.hold(&many());
        let prober = Prober::start(bindable());
        let new: Vec<KeeperProcess> = (0..3)
            .map(|n| node.spawn(&n.to_string(), &node.run_dir(), &[]))
            .collect();
        let owners = |keepers: &[KeeperProcess]| {
            let held: Vec<_> = keepers.iter().filter_map(KeeperProcess::list).collect();
            (held.len() == 1 && held[0] == many()).then_some(())
        };
        thread::scope(|scope| {
            for keeper in &new {
                scope.spawn(|| keeper.take_over());
            }
        });
        eventually("one of them has everything", || owners(&new));
        assert_retired(&old);
        prober.finish();
    });
}

#[test]
fn keepers_in_separate_pid_namespaces_hand_over_and_end_on_sigterm() {
    in_netns(|| {
        // as in containers: process 1 does not receive signals without a handler
        let isolate = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let node = Node::new();
        let mut old = node.spawn("old", &node.run_dir(), &isolate);
        old.hold(&many());
        let new = node.spawn("new", &node.run_dir(), &isolate);
        new.take_over();
        assert_eq!(new.list().unwrap(), many());
        assert_retired(&old);
        let unshare = old.child.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        let inner = children.unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(inner), Signal::SIGTERM).unwrap();
        assert!(old.wait().success());
        assert_eq!(node.peer_sockets().len(), 1);
    });
}
