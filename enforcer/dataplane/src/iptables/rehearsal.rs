//! Tries every match and target of our rules, before iptables is chosen.
//!
//! A kernel may have the programs' part and lack modules. Then iptables prints rules and refuses
//! ours, and no pod would ever be mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmapping_shared::{ContainerPort, HostPort, Mapping, Protocol};

use super::commands::Commands;
use super::layout::{JUMPS, Layout, NAT, Pod};
use super::rule::is_our_chain;
use super::saved_tables::SavedTables;
use super::transaction::Transaction;
use crate::DataplaneError;
use crate::exec::Tools;
use crate::family::Family;
use crate::settings::Settings;

/// The chain of the rules that are only tried. Nothing leads to it.
const CHAIN: &str = "PORTMAPPING-CHECK";

/// Makes rules with every match and target that we use in a chain of their own, and removes them. If
/// the kernel refuses one, nothing is made.
pub(crate) fn rehearse(
    saved: &SavedTables,
    settings: &Settings,
    tools: &Tools,
) -> Result<(), DataplaneError> {
    for family in Family::ALL {
        let commands = Commands::new(family, saved.flavour, tools.clone());
        // a node without ip6tables has IPv4 rules only, and iptables-legacy makes a table by using it
        if saved.of(family).is_none() || family == Family::V6 && !commands.is_in_use(NAT) {
            continue;
        }
        let made = Transaction {
            chains: BTreeMap::from([(CHAIN.to_owned(), rules(family, settings))]),
            ..Transaction::default()
        };
        commands.restore(&made)?;
        let removed = Transaction {
            obsolete: vec![CHAIN.to_owned()],
            ..Transaction::default()
        };
        commands.restore(&removed)?;
    }
    Ok(())
}

/// Returns one rule for each combination of options that our rules have.
fn rules(family: Family, settings: &Settings) -> Vec<String> {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let settings = Settings {
        host_addresses: [ip].into(),
        ..settings.clone()
    };
    // the kernel may lack SCTP
    let protocols = BTreeSet::from([Protocol::Tcp, Protocol::Udp]);
    let port = settings.range.first();
    let mapping = |protocol, host_ip| {
        Some(Mapping {
            protocol,
            host_port: port,
            host_ip,
            pod_ip: ip,
            container_port: ContainerPort::new(port.get())?,
            owner: "rehearsal".parse().ok()?,
        })
    };
    let mappings = protocols.iter();
    let mappings =
        mappings.flat_map(|protocol| [mapping(*protocol, None), mapping(*protocol, Some(ip))]);
    let layout = Layout::new(family, settings);
    let leaves = layout.leaves(mappings.flatten());
    let owner = leaves
        .values()
        .flatten()
        .map(|mapping| mapping.owner.clone());
    let pod = owner.map(|owner| (ip, Pod { owner, mappings: 1 }));
    let chains = layout.chains(&protocols, &leaves, &pod.collect());
    let jumps = JUMPS.map(|jump| jump.rule.to_owned());
    let all = chains.into_values().flatten().chain(jumps);
    let all = all.map(|rule| without_jump(&rule)).chain(others(port));
    let by_options: BTreeMap<String, String> = all.map(|rule| (options(&rule), rule)).collect();
    by_options.into_values().collect()
}

/// Returns rules with the matches that we use in other tables.
fn others(port: HostPort) -> [String; 2] {
    [
        format!("-m conntrack --ctstate DNAT --ctorigdstport {port}:{port} -j RETURN"),
        "-m conntrack --ctstate INVALID -j RETURN".to_owned(),
    ]
}

/// Returns the rule with a verdict instead of a jump to a chain of ours, which is not there.
fn without_jump(rule: &str) -> String {
    match rule.rsplit_once([' ']) {
        Some((head, chain)) if is_our_chain(chain) => {
            let head = head.trim_end_matches("-g").trim_end_matches("-j");
            format!("{head}-j RETURN")
        }
        _ => rule.to_owned(),
    }
}

/// Returns the names of a rule's options, with the names of its matches, target and protocol.
fn options(rule: &str) -> String {
    let mut words = rule.split(' ').peekable();
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        if word.starts_with('-') || word == "!" {
            options.push(word);
            if ["-m", "-j", "-p"].contains(&word) {
                options.extend(words.next());
            }
        }
    }
    options.join(" ")
}

#[cfg(test)]
mod tests;
