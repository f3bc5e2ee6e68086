//! The mappings that the kernel of a node has, with either backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::view::Seen;
use crate::Cluster;

/// What every comment of ours begins with; the uid of the pod follows.
const OWNER: &str = "portmapping:";
/// Our table of nftables.
pub(super) const TABLE: [&str; 3] = ["table", "inet", "portmapping"];

/// Our rules in the kernel, a line each: uid, protocol, host port, destination.
pub(super) fn rules(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let run = |command: &[&str]| {
        let output = cluster.exec(node, command)?;
        ensure!(output.status.success(), "{command:?} failed: {output:?}");
        anyhow::Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut rules = BTreeSet::new();
    for save in ["iptables-save", "ip6tables-save"] {
        rules.extend(iptables_rules(&run(&[save, "-t", "nat"])?)?);
    }
    let table = TABLE.join(" ");
    if run(&["nft", "list", "tables"])?
        .lines()
        .any(|line| line == table)
    {
        let listed = run(&[&["nft", "-j", "list"], &TABLE[..]].concat())?;
        let elements = nftables_rules(&listed)?;
        ensure!(
            rules.is_empty() || elements.is_empty(),
            "rules of both backends: {rules:?} and {elements:?}"
        );
        rules.extend(elements);
    }
    Ok(rules)
}

/// The elements of the maps in `nft -j list table`.
fn nftables_rules(text: &str) -> Result<Vec<String>> {
    let listed: Value = serde_json::from_str(text).context("nft printed no JSON")?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let elements = objects.filter_map(|object| object["map"]["elem"].as_array());
    elements
        .flatten()
        .map(|pair| {
            let rule = (|| {
                let (key, to) = (&pair[0]["elem"], &pair[1]["concat"]);
                let owner = key["comment"].as_str()?.strip_prefix(OWNER)?;
                let key = &key["val"]["concat"];
                let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
                let to = SocketAddr::new(to[0].as_str()?.parse().ok()?, port(&to[1])?);
                let protocol = key[0].as_str()?.to_uppercase();
                Some(line_of(owner, &protocol, port(&key[1])?, &to.to_string()))
            })();
            rule.with_context(|| format!("an element of ours that cannot be parsed: {pair}"))
        })
        .collect()
}

/// The rules of one family. The comment of each, or of the masquerade rule of the pod's address, names
/// the pod that owns it.
fn iptables_rules(text: &str) -> Result<Vec<String>> {
    fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
        let mut words = line.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).map(|word| word.trim_matches('"'))
    }
    let owner = |line| value(line, "--comment")?.strip_prefix(OWNER);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_iptables_are_read_with_their_owners() {
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
        assert_eq!(iptables_rules(text).unwrap(), expected);
        iptables_rules(&text.replace("portmapping:c", "c")).unwrap_err();
    }

    #[test]
    fn elements_of_nftables_are_read_with_their_owners() {
        let text = r#"{"nftables": [{"metainfo": {"json_schema_version": 1}},
            {"table": {"family": "inet", "name": "portmapping", "handle": 1}},
            {"map": {"name": "ports4", "table": "portmapping", "map": "ipv4_addr . inet_service", "elem": [
                [{"elem": {"val": {"concat": ["tcp", 20000]}, "comment": "portmapping:a"}},
                 {"concat": ["10.244.1.7", 80]}]]}},
            {"map": {"name": "ports6", "table": "portmapping", "map": "ipv6_addr . inet_service", "elem": [
                [{"elem": {"val": {"concat": ["udp", 20001]}, "comment": "portmapping:c"}},
                 {"concat": ["fd00::7", 80]}]]}},
            {"map": {"name": "bound4", "table": "portmapping", "map": "ipv4_addr . inet_service"}},
            {"set": {"name": "excluded", "table": "portmapping", "elem": [2379]}}]}"#;
        let expected = [
            line_of("a", "TCP", 20000, "10.244.1.7:80"),
            line_of("c", "UDP", 20001, "[fd00::7]:80"),
        ];
        assert_eq!(nftables_rules(text).unwrap(), expected);
        nftables_rules(&text.replace("portmapping:c", "c")).unwrap_err();
    }
}
