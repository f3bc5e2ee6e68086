//! Limits of the process and of the node: the error names the limit and what to do.

use std::process::Command;

use portmapping_dataplane::Dataplane as _;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::lab::{self, Backend, range};

/// Runs one of the ignored tests as a process of its own in a new network namespace; returns a line for
/// each backend: the error of its start.
fn errors(wrapper: &[&str], test: &str) -> Vec<String> {
    let output = Command::new("unshare")
        .arg("--net")
        .args(wrapper)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let found = printed
        .lines()
        .filter_map(|line| line.split_once("error of "));
    let found: Vec<_> = found.map(|(_, error)| error.to_owned()).collect();
    assert_eq!(found.len(), Backend::ALL.len(), "{printed}");
    found
}

fn print_errors() {
    for backend in Backend::ALL {
        let settings = lab::settings_for(range("20000-29999"));
        // iptables-legacy reads no table that is not there, so the driver opens without its rights
        let opened = lab::open(backend, &settings, &lab::tools());
        let observed = opened.and_then(|mut driver| driver.observe());
        let error = observed.expect_err("a backend without its rights");
        println!("error of {backend:?}: {}", chain(&error));
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text.push_str(": ");
        text.push_str(&chain(source));
    }
    text
}

#[test]
#[ignore = "a process for other tests"]
fn open_each() {
    print_errors();
}

#[test]
#[ignore = "a process for other tests"]
fn open_each_without_files() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Nofile, none).unwrap();
    print_errors();
}

#[test]
fn what_denies_a_change_of_the_rules_is_named() {
    let without = ["setpriv", "--bounding-set", "-net_admin,-net_raw"];
    for error in errors(&without, "limits::open_each") {
        for part in ["NET_ADMIN", "SELinux"] {
            assert!(error.contains(part), "{part} missing in: {error}");
        }
    }
}

#[test]
fn the_limit_of_open_files_is_named() {
    for error in errors(&[], "limits::open_each_without_files") {
        assert!(error.contains("LimitNOFILE"), "{error}");
    }
}
