//! What a node has of the product: processes, their state, held ports.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{Cluster, visit};

const LIMIT: Duration = Duration::from_secs(3);

/// Pids of a program of ours on a node, found by its first arguments.
pub(super) fn pids(cluster: &Cluster, node: &str, words: &[&str]) -> Result<Vec<u32>> {
    let processes = cluster.processes(node)?.into_iter();
    Ok(processes
        .filter(|process| {
            let mut arguments = process.arguments.iter();
            words
                .iter()
                .all(|word| arguments.next().is_some_and(|argument| argument == word))
        })
        .map(|process| process.pid)
        .collect())
}

pub(super) const ENFORCER: [&str; 2] = ["/enforcer", "run"];
pub(super) const KEEPER: [&str; 2] = ["/enforcer", "keep"];
pub(super) const WEBHOOK: [&str; 1] = ["/webhook"];
pub(super) const ECHO: [&str; 2] = ["/echo", "--talk"];

/// The id of the container in which a process runs: the last part of the name of its cgroup.
pub(super) fn container_of(pid: u32) -> Option<String> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut ids = cgroups.lines().filter_map(container_in);
    ids.next().map(str::to_owned)
}

fn container_in(cgroup: &str) -> Option<&str> {
    const HEX_DIGITS: usize = 64;
    let name = cgroup.rsplit('/').next()?.trim_end_matches(".scope");
    let id = name.rsplit('-').next()?;
    let is_id = id.len() == HEX_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(id)
}

/// The answer of an enforcer to `GET /state`.
pub(super) fn state(pid: u32) -> Result<Value> {
    let path = format!("/proc/{pid}/root/run/enforcer/admin.sock");
    let mut stream = UnixStream::connect(&path).with_context(|| format!("connect to {path}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /state HTTP/1.0\r\nHost: enforcer\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read /state")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("/state gave no HTTP answer")?;
    ensure!(head.contains(" 200 "), "/state answered {head}");
    serde_json::from_str(body).context("/state is no JSON")
}

/// Which of these ports (by protocol) cannot be bound on a node.
pub(super) fn taken(
    cluster: &Cluster,
    node: &str,
    ports: Vec<(String, u16)>,
) -> Result<Vec<(String, u16)>> {
    visit::run_at(cluster, node, move || {
        ports
            .into_iter()
            .filter(|(protocol, port)| !is_free(protocol, *port))
            .collect()
    })
}

/// Whether another process could bind a port.
pub(super) fn is_free(protocol: &str, port: u16) -> bool {
    if protocol == "UDP" {
        UdpSocket::bind(("0.0.0.0", port)).is_ok()
    } else {
        TcpListener::bind(("0.0.0.0", port)).is_ok()
    }
}

/// Resident memory in KiB, and how many descriptors a process has open.
pub(super) fn footprint(pid: u32) -> Result<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read a status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .context("list descriptors")?
        .count();
    Ok((memory.with_context(|| format!("no VmRSS of {pid}"))?, open))
}

/// The one process of a kind; none or several are an error, as in the middle of a rolling update.
pub(super) fn only(cluster: &Cluster, node: &str, words: &[&str]) -> Result<u32> {
    match pids(cluster, node, words)?.as_slice() {
        [pid] => Ok(*pid),
        found => bail!("{} times {} on {node}", found.len(), words.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_the_last_part_of_the_cgroup() {
        let id = "0123456789abcdef".repeat(4);
        for line in [
            format!("4:memory:/h-chaos/node1/kubepods/burstable/pod1-2/{id}"),
            format!("0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{id}.scope"),
        ] {
            assert_eq!(container_in(&line), Some(id.as_str()), "{line}");
        }
        assert_eq!(container_in("4:memory:/kubepods/burstable/pod1-2"), None);
    }
}
