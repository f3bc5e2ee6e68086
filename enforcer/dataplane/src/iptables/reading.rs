//! Reads what a table has of ours, and how it differs from what it should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_shared::{Mapping, PodUid, Protocol};

use super::layout::{
    Chains, JUMP_COMMENT, JUMPS, Jump, Layout, Leaves, Pod, Pods, bucket, is_bucket, root,
};
use super::older::Owners;
use super::rule::{self, Route, Rule};
use super::save::{Reference, Saved};
use crate::family::Family;

/// The owners that rules of pods name, by address.
type PodOwners = BTreeMap<IpAddr, PodUid>;

/// What is in the kernel, as of the last read or change.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Whether nothing of ours is there, as on a node without mappings.
    pub(super) untouched: bool,
    /// Protocols that have chains.
    pub(super) protocols: BTreeSet<Protocol>,
    pub(super) leaves: Leaves,
    pub(super) pods: Pods,
    /// The addresses at which the rules answer.
    pub(super) host_addresses: BTreeSet<IpAddr>,
    pub(super) damage: Damage,
}

/// How the chains and jumps differ from what they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Chains that are missing or have other rules than ours.
    pub(super) chains: BTreeSet<String>,
    /// Chains of ours that should not be there: another layout made them.
    pub(super) obsolete: Vec<String>,
    pub(super) missing_jumps: Vec<Jump>,
    /// Jumps that are not the first of their chain, or were edited, with the rules to be deleted.
    /// A jump that only has to be inserted again has no such rules.
    pub(super) misplaced_jumps: Vec<(Jump, Vec<String>)>,
}

impl Damage {
    /// Returns whether nothing is missing or altered, and only rules of other programs come before
    /// our jumps.
    pub(super) fn is_order_only(&self) -> bool {
        let Self {
            chains,
            obsolete,
            missing_jumps,
            misplaced_jumps,
        } = self;
        let others = chains.is_empty() && obsolete.is_empty() && missing_jumps.is_empty();
        let mut moved = misplaced_jumps.iter();
        let moved = moved.all(|(jump, found)| same_rules(&[jump.rule], found));
        others && moved && !misplaced_jumps.is_empty()
    }
}

impl Known {
    /// Parses the output of iptables-save.
    pub(super) fn read(text: &str, family: Family, layout: &Layout) -> Self {
        let saved = Saved::parse(text);
        let owners = Owners::read(&saved);
        let pod_owners = pod_owners(&saved, layout);
        // leaves that are exactly as we write them, with their number of rules
        let mut whole = BTreeMap::new();
        let mut found = Vec::new();
        for (chain, rules) in &saved.chains {
            let read = rules.iter();
            let read = read.map(|rule| mapping_of(rule, family, &pod_owners, &owners));
            let read: Vec<Option<Mapping>> = read.collect();
            let mut named = rules.iter().zip(read.iter().flatten());
            let named = named
                .all(|(rule, mapping)| has_owner(rule) || pod_owners.contains_key(&mapping.pod_ip));
            if is_whole_leaf(chain, &read, layout) && named {
                whole.insert(*chain, rules.len());
            }
            found.extend(read.into_iter().flatten());
        }
        let leaves = layout.leaves(found);
        let pods = pods(pod_owners, &leaves);
        let in_use: BTreeSet<Protocol> = leaves.values().flatten().map(|m| m.protocol).collect();
        let has_chains = |protocol: &Protocol| {
            in_use.contains(protocol) || saved.chains.contains_key(root(*protocol).as_str())
        };
        let known = Self {
            untouched: saved.is_empty(),
            protocols: Protocol::ALL.into_iter().filter(has_chains).collect(),
            leaves,
            pods,
            host_addresses: layout.host_addresses_in(&saved.chains),
            damage: Damage::default(),
        };
        let damage = known.damage(&saved, &whole, layout);
        Self { damage, ..known }
    }

    /// Returns the mappings of all leaves.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.leaves.values().flatten()
    }

    /// Returns every chain of ours as it should be.
    pub(super) fn chains(&self, layout: &Layout) -> Chains {
        layout.chains(&self.protocols, &self.leaves, &self.pods)
    }

    fn damage(&self, saved: &Saved<'_>, whole: &BTreeMap<&str, usize>, layout: &Layout) -> Damage {
        let mut expected = layout.frame(&self.protocols, &self.leaves);
        for (ip, pod) in &self.pods {
            let rules = expected.entry(bucket(*ip)).or_default();
            rules.push(layout.pod_rule(*ip, &pod.owner));
        }
        let differs = |chain: &str, rules: &[String]| {
            let Some(found) = saved.chains.get(chain) else {
                return true;
            };
            match self.leaves.get(chain) {
                Some(mappings) => whole.get(chain) != Some(&mappings.len()),
                None => !(same_rules(rules, found) || is_bucket(chain) && same_set(rules, found)),
            }
        };
        let mut damage = Damage {
            chains: expected
                .iter()
                .filter(|(chain, rules)| differs(chain, rules))
                .map(|(chain, _)| chain.clone())
                .collect(),
            obsolete: saved
                .chains
                .keys()
                .filter(|chain| !expected.contains_key(**chain))
                .map(|chain| (*chain).to_owned())
                .collect(),
            ..Damage::default()
        };
        for jump in JUMPS {
            let ours = jumps_of_ours(saved, &jump);
            match ours.as_slice() {
                [] => damage.missing_jumps.push(jump),
                [only] if only.position == 0 && same_rules(&[jump.rule], &[only.rule]) => {}
                _ => {
                    let found = ours.iter().map(|reference| reference.rule.to_owned());
                    damage.misplaced_jumps.push((jump, found.collect()));
                }
            }
        }
        damage
    }
}

/// Returns the owners that the rules of pods name, by address; none where two rules name different
/// ones.
fn pod_owners(saved: &Saved<'_>, layout: &Layout) -> PodOwners {
    let mut owners: BTreeMap<IpAddr, Option<PodUid>> = BTreeMap::new();
    for (chain, rules) in saved.chains.iter().filter(|(chain, _)| is_bucket(chain)) {
        let found = rules.iter().filter_map(|rule| layout.pod_of(rule));
        for (ip, owner) in found.filter(|(ip, _)| bucket(*ip) == *chain) {
            let known = owners.entry(ip).or_insert_with(|| Some(owner.clone()));
            if known.as_ref() != Some(&owner) {
                *known = None;
            }
        }
    }
    let known = owners.into_iter();
    known.filter_map(|(ip, owner)| Some((ip, owner?))).collect()
}

/// Returns the pods that have rules, and those that need one.
fn pods(owners: PodOwners, leaves: &Leaves) -> Pods {
    let owned = owners.into_iter();
    let owned = owned.map(|(ip, owner)| (ip, Pod { owner, mappings: 0 }));
    let mut pods: Pods = owned.collect();
    for mapping in leaves.values().flatten() {
        let pod = pods.entry(mapping.pod_ip).or_insert_with(|| Pod {
            owner: mapping.owner.clone(),
            mappings: 0,
        });
        pod.mappings += 1;
    }
    pods
}

/// Returns the mapping of a rule, if the rule means the same as one of ours and its owner is known.
fn mapping_of(rule: &str, family: Family, pods: &PodOwners, older: &Owners) -> Option<Mapping> {
    let mut route = route_of(rule, family)?;
    let owner = route.owner.take();
    let owner = owner.or_else(|| pods.get(&route.to.ip()).cloned());
    let owner = owner.or_else(|| older.of(&route))?;
    route.owned_by(owner)
}

fn route_of(text: &str, family: Family) -> Option<Route> {
    // most of our rules are not mappings, and this check is cheaper than parsing them
    if !text.contains(" -j DNAT ") {
        return None;
    }
    rule::written_by_us(text, family).or_else(|| {
        let rule = Rule::parse(text)?;
        let route = rule.route(family)?;
        (Rule::parse(&route.rule()) == Some(rule)).then_some(route)
    })
}

/// Returns whether a rule names its owner.
fn has_owner(rule: &str) -> bool {
    rule.contains(" --comment ")
}

/// Returns whether a chain has only mappings that belong there, each once. Of two mappings of one
/// port, the one with a host address must come first. Any other order is allowed, because new ones
/// are appended.
fn is_whole_leaf(chain: &str, mappings: &[Option<Mapping>], layout: &Layout) -> bool {
    let mut seen = BTreeSet::new();
    let mut everywhere = BTreeSet::new();
    mappings.iter().all(|mapping| {
        let Some(mapping) = mapping else {
            return false;
        };
        let port = (mapping.protocol, mapping.host_port);
        let reached = mapping.host_ip.is_none() || !everywhere.contains(&port);
        if mapping.host_ip.is_none() {
            everywhere.insert(port);
        }
        reached && seen.insert(mapping) && layout.leaf(mapping) == chain
    })
}

/// Returns the jumps that we made in a built-in chain, also edited or duplicated ones.
pub(super) fn jumps_of_ours<'a>(saved: &Saved<'a>, jump: &Jump) -> Vec<Reference<'a>> {
    let ours = |reference: &&Reference<'a>| {
        reference.chain == jump.from
            && Rule::parse(reference.rule)
                .is_some_and(|rule| rule.value("--comment") == Some(JUMP_COMMENT))
    };
    saved.references.iter().filter(ours).copied().collect()
}

/// Returns whether the rules mean the same, in any spelling.
pub(super) fn same_rules<A: AsRef<str>, B: AsRef<str>>(expected: &[A], found: &[B]) -> bool {
    expected.len() == found.len()
        && expected.iter().zip(found).all(|(expected, found)| {
            let (expected, found) = (expected.as_ref(), found.as_ref());
            expected == found
                || Rule::parse(expected).is_some_and(|rule| Rule::parse(found) == Some(rule))
        })
}

/// Returns whether the rules are the same, in any order.
fn same_set(expected: &[String], found: &[&str]) -> bool {
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    let mut found = found.to_vec();
    expected.sort_unstable();
    found.sort_unstable();
    same_rules(&expected, &found)
}

#[cfg(test)]
mod tests;
