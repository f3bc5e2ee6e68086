//! Reads the owners of mappings as snapshots before 0.1.0 wrote them: comments in chains that no
//! packet enters.
//!
//! ```text
//! PORTMAPPING-TCP-20000-20021   -p tcp -m tcp --dport 20000 -j DNAT --to-destination 10.244.1.7:80
//! PORTMAPPING-UID-TCP-20000     -m comment --comment "portmapping:20000=UID 20001@172.30.0.1=UID"
//! ```
//!
//! An enforcer that starts after an upgrade reads them, so that every mapping keeps its owner. The
//! first transaction replaces these chains.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portmapping_shared::contract::RULE_COMMENT_PREFIX;
use portmapping_shared::{HostPort, PodUid, Protocol};

use super::rule::{Route, Rule};
use super::save::Saved;

type Key = (Protocol, HostPort, Option<IpAddr>);

/// Owners by protocol, host port and host address; None where two comments name different ones.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<Key, Option<PodUid>>);

impl Owners {
    pub(super) fn read(saved: &Saved<'_>) -> Self {
        let mut owners: BTreeMap<Key, Option<PodUid>> = BTreeMap::new();
        for (chain, rules) in &saved.chains {
            let Some(protocol) = protocol_of(chain) else {
                continue;
            };
            for rule in rules {
                for (key, owner) in entries(rule, protocol).unwrap_or_default() {
                    let known = owners.entry(key).or_insert_with(|| Some(owner.clone()));
                    if known.as_ref() != Some(&owner) {
                        *known = None;
                    }
                }
            }
        }
        Self(owners)
    }

    /// Returns the owner of a rule that does not name its owner.
    pub(super) fn of(&self, route: &Route) -> Option<PodUid> {
        let key = (route.protocol, route.host_port, route.host_ip);
        self.0.get(&key).cloned().flatten()
    }
}

fn protocol_of(chain: &str) -> Option<Protocol> {
    let mut parts = chain.strip_prefix("PORTMAPPING-UID-")?.split('-');
    parts.next()?.parse().ok()
}

/// Returns the entries of a comment; None if any part of it is malformed.
fn entries(rule: &str, protocol: Protocol) -> Option<Vec<(Key, PodUid)>> {
    let rule = Rule::parse(rule)?;
    let comment = rule.value("--comment")?.strip_prefix(RULE_COMMENT_PREFIX)?;
    let entry = |entry: &str| {
        let (place, owner) = entry.split_once('=')?;
        let (port, host_ip) = match place.split_once('@') {
            Some((port, host_ip)) => (port, Some(host_ip.parse().ok()?)),
            None => (place, None),
        };
        let host_port = HostPort::new(port.parse().ok()?)?;
        Some(((protocol, host_port, host_ip), owner.parse().ok()?))
    };
    comment.split(' ').map(entry).collect()
}

#[cfg(test)]
mod tests;
