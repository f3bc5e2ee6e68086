//! What a node has of the product: processes, their state, rules, held ports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::view::Seen;
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

/// Our rules in the kernel, a line each: uid, protocol, host port, destination.
pub(super) fn rules(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let mut rules = BTreeSet::new();
    for save in ["iptables-save", "ip6tables-save"] {
        let output = cluster.exec(node, &[save, "-t", "nat"])?;
        ensure!(output.status.success(), "{save} failed: {output:?}");
        rules.extend(rules_in(&String::from_utf8_lossy(&output.stdout))?);
    }
    Ok(rules)
}

/// The rules of one family. The comment of each, or of the masquerade rule of the pod's address, names
/// the pod that owns it.
fn rules_in(text: &str) -> Result<Vec<String>> {
    fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).map(|word| word.trim_matches('"'))
    }
    let owner = |line| value(line, "--comment")?.strip_prefix("portmapping:");
    let ours = |target: &'static str| {
        let lines = text.lines();
        lines.filter(move |line| line.starts_with("-A PORTMAPPING") && line.contains(target))
    };
    let pods: BTreeMap<IpAddr, &str> = ours("-j MASQUERADE")
        .filter_map(|line| {
            let (ip, _) = value(line, "-s")?.split_once('/')?;
            Some((ip.parse().ok()?, owner(line)?))
        })
        .collect();
    ours("-j DNAT")
        .map(|line| {
            let rule = (|| {
                let to: SocketAddr = value(line, "--to-destination")?.parse().ok()?;
                Some(line_of(
                    owner(line).or_else(|| pods.get(&to.ip()).copied())?,
                    &value(line, "-p")?.to_uppercase(),
                    value(line, "--dport")?.parse().ok()?,
                    &to.to_string(),
                ))
            })();
            rule.with_context(|| format!("a rule of ours that cannot be parsed: {line}"))
        })
        .collect()
}

/// The rules that a pod should have according to its annotation, in the same form.
pub(super) fn rules_of(pod: &Seen) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for entry in &pod.entries {
        for ip in pod.pod_ips.iter().filter_map(|ip| ip.parse().ok()) {
            let to = SocketAddr::new(ip, entry.container_port).to_string();
            rules.insert(line_of(&pod.uid, &entry.protocol, entry.host_port, &to));
        }
    }
    rules
}

fn line_of(uid: &str, protocol: &str, host_port: u16, to: &str) -> String {
    format!("{uid} {protocol} {host_port} -> {to}")
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
    fn rules_are_read_with_their_owners() {
        let text = "*nat
:PORTMAPPING-TCP-20000-20021 - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -m comment --comment portmapping -j PORTMAPPING
-A PORTMAPPING-TCP-20000-20021 -p tcp -m tcp --dport 20000 -m comment --comment \"portmapping:a\" -j DNAT --to-destination 10.244.1.7:80
-A PORTMAPPING-TCP-20000-20021 -p tcp -m tcp --dport 20002 -j DNAT --to-destination 10.244.1.8:80
-A PORTMAPPING-MASQ-8 -s 10.244.1.8/32 -d 10.244.1.8/32 -m comment --comment \"portmapping:b\" -j MASQUERADE
-A PORTMAPPING-UDP-20000-20021 -p udp -m udp --dport 20001 -m comment --comment \"portmapping:c\" -j DNAT --to-destination [fd00::7]:80
COMMIT
";
        let expected = [
            line_of("a", "TCP", 20000, "10.244.1.7:80"),
            line_of("b", "TCP", 20002, "10.244.1.8:80"),
            line_of("c", "UDP", 20001, "[fd00::7]:80"),
        ];
        assert_eq!(rules_in(text).unwrap(), expected);
        rules_in(&text.replace("portmapping:c", "c")).unwrap_err();
    }
}
