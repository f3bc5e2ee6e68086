//! Limits of the kernel: the error names the one that was reached.

use std::process::Command;

use portmapping_enforcer::cni::directory_watch::DirectoryWatch;

use crate::lab::block_on;

/// Runs [`watch_a_directory`] in a user namespace with a limit of 0; returns what it prints.
fn with_limit_of_zero(sysctl: &str) -> String {
    let script = format!("echo 0 > /proc/sys/user/{sysctl} && exec \"$@\"");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "limits::watch_a_directory"])
        .args(["--ignored", "--nocapture"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "a process for other tests"]
fn watch_a_directory() {
    block_on(async {
        let error = DirectoryWatch::of_results("/tmp".as_ref()).unwrap_err();
        println!("{error}");
    });
}

#[test]
fn an_exhausted_limit_of_inotify_is_named() {
    for (sysctl, named) in [
        ("max_inotify_instances", "fs.inotify.max_user_instances"),
        ("max_inotify_watches", "fs.inotify.max_user_watches"),
    ] {
        let printed = with_limit_of_zero(sysctl);
        assert!(printed.contains(named), "{sysctl}: {printed}");
    }
}
