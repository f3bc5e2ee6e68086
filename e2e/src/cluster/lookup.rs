//! Finding a cluster's processes from the root namespaces, by their command lines.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::config::Spec;
use super::role_name::RoleName;

/// The pid, as seen from here, of the process in this role.
pub(crate) fn find(role: RoleName, state: &Path) -> Option<u32> {
    let wanted = role.arguments(state);
    pids().find(|pid| arguments(*pid).get(1..) == Some(&wanted))
}

/// The pid, as seen from here, of the first process of a host.
pub(crate) fn pid_of(spec: &Spec, host: &str) -> Result<u32> {
    find(RoleName::of_host(host)?, &spec.state).with_context(|| {
        let name = &spec.config.name;
        format!("{host} is not running in the cluster {name} (see: e2e status)")
    })
}

/// Whether any process of the cluster is left.
pub(crate) fn any(state: &Path) -> bool {
    pids().any(|pid| {
        let arguments = arguments(pid);
        arguments.get(1).is_some_and(|word| word == "internal")
            && arguments
                .get(3)
                .is_some_and(|word| Path::new(word) == state)
    })
}

/// Numbers of the nodes that live.
pub(crate) fn nodes(state: &Path) -> Vec<u8> {
    let mut nodes: Vec<_> = pids()
        .filter_map(|pid| {
            let arguments = arguments(pid);
            let index = arguments.get(4)?.to_str()?.parse().ok()?;
            let wanted = RoleName("node-init", Some(index)).arguments(state);
            (arguments[1..] == wanted).then_some(index)
        })
        .collect();
    nodes.sort_unstable();
    nodes
}

/// A process below another one.
#[derive(Clone, Debug)]
pub struct Process {
    /// As this machine sees it.
    pub pid: u32,
    parent: u32,
    /// Its command line.
    pub arguments: Vec<OsString>,
}

/// All processes that descend from `root`.
pub(crate) fn descendants(root: u32) -> Vec<Process> {
    let all: Vec<_> = pids()
        .filter_map(|pid| {
            Some(Process {
                pid,
                parent: parent(pid)?,
                arguments: arguments(pid),
            })
        })
        .collect();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == parent) {
            parents.push(process.pid);
            found.push(process.clone());
        }
    }
    found
}

/// A figure of /proc/PID/status in KiB, such as `VmRSS`.
pub(crate) fn status_kib(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn arguments(pid: u32) -> Vec<OsString> {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return Vec::new();
    };
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    line.split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold spaces and parentheses.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
