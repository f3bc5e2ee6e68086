//! `enforcer uninstall` on a node where keepers run.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portmapping_keeper::{EndError, wait_for_end};

use crate::world::{Node, eventually, in_netns, soon};

#[test]
fn uninstalling_waits_for_the_end_of_every_keeper_and_names_one_that_answers() {
    let node = Node::new();
    let wait = |within| wait_for_end(&node.run_dir(), within);
    let answering = || match wait(Duration::ZERO) {
        Err(EndError::Answers(keeper)) => keeper,
        other => panic!("{other:?}"),
    };
    drop(wait(soon()).expect("no keeper has ever run here"));
    let first = node.keeper("first");
    let second = node.keeper("second");
    let hung = answering();
    assert!(node.peer_sockets().contains(&hung), "{hung:?}");
    first.kill();
    // a stopped process accepts no connection, and yet it holds its ports
    second.signal(Signal::SIGSTOP);
    let left = answering();
    assert!(node.peer_sockets().contains(&left), "{left:?}");
    second.kill();
    drop(wait(soon()).expect("socket files of dead keepers do not count"));
}

#[test]
fn an_uninstallation_that_waits_for_a_keeper_ends_on_sigterm() {
    in_netns(|| {
        let node = Node::new();
        let _keeper = node.keeper("running");
        // as in a container: process 1 does not receive signals without a handler
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .args([env!("CARGO_BIN_EXE_enforcer"), "uninstall", "--run-dir"])
            .arg(node.run_dir())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let inner: i32 = eventually("it runs", || {
            fs::read_to_string(&children).ok()?.trim().parse().ok()
        });
        let ended = eventually("it ends", || {
            // again, as it may not have installed its handler yet
            let _ = kill(Pid::from_raw(inner), Signal::SIGTERM);
            unshare.try_wait().unwrap()
        });
        assert!(!ended.success(), "a keeper answers: nothing was removed");
    });
}
