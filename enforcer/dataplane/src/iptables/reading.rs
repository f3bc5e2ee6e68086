//! What a table has of ours, and where that differs from what it should be. Pure.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::{Mapping, Protocol};

use super::family::Family;
use super::layout::{JUMP_COMMENT, JUMPS, Jump, Layout, Leaves, Pods, bucket, is_bucket};
use super::notes::{self, Key, Notes, Owners};
use super::rule::{self, Route, Rule};
use super::save::{Reference, Saved};
use super::tree::Tree;

/// What is in the kernel, as of the last look or change.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Nothing of ours is there, as on a node without mappings.
    pub(super) untouched: bool,
    /// Protocols that have a range tree.
    pub(super) protocols: BTreeSet<Protocol>,
    pub(super) leaves: Leaves,
    pub(super) pods: Pods,
    pub(super) notes: Notes,
    pub(super) damage: Damage,
    /// The fingerprint of the text that all of this says; None once something was changed.
    pub(super) text_read: Option<u64>,
}

/// How the frame differs from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Damage {
    /// Chains that are missing or have other rules than ours.
    pub(super) chains: BTreeSet<String>,
    /// Chains of ours that should not be: another layout made them.
    pub(super) obsolete: Vec<String>,
    pub(super) missing_jumps: Vec<Jump>,
    /// Jumps that are not the first of their chain, or were edited: those rules, to be deleted.
    /// None to be deleted for a jump that is only to be put back.
    pub(super) misplaced_jumps: Vec<(Jump, Vec<String>)>,
}

impl Known {
    /// Reads what iptables-save printed.
    pub(super) fn read(text: &str, family: Family, layout: &Layout) -> Self {
        let saved = Saved::parse(text);
        let mut notes = Notes::default();
        let mut owners = BTreeMap::new();
        let mut whole = Whole::default();
        for (chain, rules) in &saved.chains {
            if notes::is_notes(chain) {
                let (found, as_written) = notes.read(chain, rules);
                if as_written {
                    whole.notes.insert(chain);
                }
                owners.insert(*chain, found);
            }
        }
        let nobody = Owners::default();
        let mut found = Vec::new();
        for (chain, rules) in &saved.chains {
            let owners = owners.get(notes::chain_of(chain).as_str());
            let owners = owners.unwrap_or(&nobody);
            let mappings: Vec<Option<Mapping>> = rules
                .iter()
                .map(|rule| mapping_of(rule, family, owners))
                .collect();
            if is_whole_leaf(chain, &mappings, layout) && !has_old_rules(rules) {
                whole.leaves.insert(chain, mappings.len());
            }
            found.extend(mappings.into_iter().flatten());
        }
        let leaves = layout.leaves(found);
        for (leaf, mappings) in &leaves {
            let notes = notes::chain_of(leaf);
            let owners = owners.get(notes.as_str()).unwrap_or(&nobody);
            let told = |m: &Mapping| owners.of(&Key::of(m)) == Some(&m.owner);
            if !whole.notes.contains(notes.as_str()) || !mappings.iter().all(told) {
                whole.unowned.insert(notes);
            }
        }
        let pods = pods(&saved, &leaves, layout);
        let rooted = |protocol: &Protocol| {
            let in_use = leaves
                .values()
                .flatten()
                .any(|mapping| mapping.protocol == *protocol);
            in_use || saved.chains.contains_key(Tree::root(*protocol).as_str())
        };
        let protocols: BTreeSet<Protocol> = Protocol::ALL.into_iter().filter(rooted).collect();
        let known = Self {
            untouched: saved.is_empty(),
            protocols,
            leaves,
            pods,
            notes,
            damage: Damage::default(),
            text_read: None,
        };
        let damage = known.damage(&saved, &whole, layout);
        Self { damage, ..known }
    }

    fn damage(&self, saved: &Saved<'_>, whole: &Whole<'_>, layout: &Layout) -> Damage {
        let mut expected = layout.frame(&self.protocols, &self.leaves);
        for pod in self.pods.keys() {
            let rules = expected.entry(bucket(*pod)).or_default();
            rules.push(layout.pod_rule(*pod));
        }
        let differs = |chain: &String, rules: &Vec<String>| match (
            self.leaves.get(chain),
            saved.chains.get(chain.as_str()),
        ) {
            (_, None) => true,
            (Some(mappings), Some(_)) => whole.leaves.get(chain.as_str()) != Some(&mappings.len()),
            (None, Some(found)) => {
                !(same_rules(rules, found) || is_bucket(chain) && same_set(rules, found))
            }
        };
        // notes may say more than there is
        let wanted = |chain: &str| match layout.leaf_of_notes(chain) {
            Some(leaf) => {
                self.leaves.contains_key(&leaf)
                    || expected.contains_key(&leaf) && whole.notes.contains(chain)
            }
            None => expected.contains_key(chain),
        };
        let mut damage = Damage {
            chains: expected
                .iter()
                .filter(|(chain, rules)| differs(chain, rules))
                .map(|(chain, _)| chain.clone())
                .chain(whole.unowned.iter().cloned())
                .collect(),
            obsolete: saved
                .chains
                .keys()
                .filter(|chain| !wanted(chain))
                .map(|chain| (*chain).to_owned())
                .collect(),
            ..Damage::default()
        };
        for jump in JUMPS {
            let ours = jumps_of_ours(saved, &jump);
            let first = ours
                .first()
                .is_some_and(|reference| reference.position == 0);
            match ours.as_slice() {
                [] => damage.missing_jumps.push(jump),
                [only] if first && same_rules(&[jump.rule], &[only.rule]) => {}
                _ => {
                    let found = ours
                        .iter()
                        .map(|reference| reference.rule.to_owned())
                        .collect();
                    damage.misplaced_jumps.push((jump, found));
                }
            }
        }
        damage
    }
}

/// What is as we write it.
#[derive(Debug, Default)]
struct Whole<'a> {
    /// Leaves, and how many mappings each has.
    leaves: BTreeMap<&'a str, usize>,
    /// Chains of notes.
    notes: BTreeSet<&'a str>,
    /// But of these, some do not say of all mappings of their leaf whose they are.
    unowned: BTreeSet<String>,
}

/// The pods that have rules, and those that are to have some.
fn pods(saved: &Saved<'_>, leaves: &Leaves, layout: &Layout) -> Pods {
    let mut pods = Pods::new();
    if !layout.has_pod_rules() {
        return pods;
    }
    for (chain, rules) in &saved.chains {
        let found = rules.iter().filter_map(|rule| layout.pod_of(rule));
        let here = found.filter(|pod| bucket(*pod) == *chain);
        pods.extend(here.map(|pod| (pod, 0)));
    }
    for mapping in leaves.values().flatten() {
        *pods.entry(mapping.pod_ip).or_default() += 1;
    }
    pods
}

/// The mapping that a rule carries, if it is written as we write it or means the same, and if it
/// is known whose it is.
fn mapping_of(rule: &str, family: Family, owners: &Owners) -> Option<Mapping> {
    let mut route = route_of(rule, family)?;
    let key = Key {
        host_port: route.host_port,
        host_ip: route.host_ip,
    };
    let owner = route.owner.take().or_else(|| owners.of(&key).cloned())?;
    route.owned_by(owner)
}

fn route_of(text: &str, family: Family) -> Option<Route> {
    // most rules of ours are no mapping, and this is cheaper than parsing them
    if !text.contains(" -j DNAT ") {
        return None;
    }
    rule::written_by_us(text, family).or_else(|| {
        let rule = Rule::parse(text)?;
        let route = rule.route(family)?;
        (Rule::parse(&route.rule()) == Some(rule)).then_some(route)
    })
}

/// Whether rules say themselves whose they are, as those of older versions do.
fn has_old_rules(rules: &[&str]) -> bool {
    rules.iter().any(|rule| rule.contains(" --comment "))
}

/// Whether a chain has nothing but mappings that belong there, each once, and where two share a
/// port the one with a host address first. Their order is else of no account: new ones are appended.
fn is_whole_leaf(chain: &str, mappings: &[Option<Mapping>], layout: &Layout) -> bool {
    let Some(mappings) = mappings
        .iter()
        .map(Option::as_ref)
        .collect::<Option<Vec<_>>>()
    else {
        return false;
    };
    let mut seen = BTreeSet::new();
    let mut everywhere = BTreeSet::new();
    let in_order = mappings.iter().all(|mapping| {
        let port = (mapping.protocol, mapping.host_port);
        let reached = mapping.host_ip.is_none() || !everywhere.contains(&port);
        if mapping.host_ip.is_none() {
            everywhere.insert(port);
        }
        reached && seen.insert(*mapping)
    });
    in_order && layout.is_leaf_of(chain, mappings)
}

/// The jumps in a built-in chain that we made, be they edited or doubled.
fn jumps_of_ours<'a>(saved: &Saved<'a>, jump: &Jump) -> Vec<Reference<'a>> {
    let ours = |reference: &&Reference<'a>| {
        reference.chain == jump.from
            && Rule::parse(reference.rule)
                .is_some_and(|rule| rule.value("--comment") == Some(JUMP_COMMENT))
    };
    saved.references.iter().filter(ours).copied().collect()
}

/// Whether the rules mean the same, however they are spelled.
fn same_rules<A: AsRef<str>, B: AsRef<str>>(expected: &[A], found: &[B]) -> bool {
    expected.len() == found.len()
        && expected.iter().zip(found).all(|(expected, found)| {
            let (expected, found) = (expected.as_ref(), found.as_ref());
            expected == found
                || Rule::parse(expected).is_some_and(|rule| Rule::parse(found) == Some(rule))
        })
}

/// Whether the rules are the same but for their order.
fn same_set(expected: &[String], found: &[&str]) -> bool {
    let mut sorted = (
        expected.iter().map(String::as_str).collect::<Vec<_>>(),
        found.to_vec(),
    );
    sorted.0.sort_unstable();
    sorted.1.sort_unstable();
    same_rules(&sorted.0, &sorted.1)
}

#[cfg(test)]
mod tests;
