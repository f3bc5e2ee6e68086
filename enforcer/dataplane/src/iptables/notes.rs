//! Who owns which mapping, as comments in chains of their own that no packet comes to.
//!
//! ```text
//! PORTMAPPING-TCP-20000-20021   -p tcp -m tcp --dport 20000 -j DNAT --to-destination 10.244.1.7:80
//! PORTMAPPING-UID-TCP-20000     -m comment --comment "portmapping:20000=UID 20001=UID"
//! ```
//!
//! At each new rule iptables-nft has the kernel check every rule that a packet can come to, and a
//! comment costs it as much as the rest of the rule. A note says something only of a rule that is
//! there, and where two differ neither is believed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use portmapping_shared::contract::RULE_COMMENT_PREFIX;
use portmapping_shared::{HostPort, Mapping, PodUid, Protocol};

use super::rule::Rule;
use super::transaction::Transaction;

/// Before the names of these chains.
const PREFIX: &str = "PORTMAPPING-UID-";
/// Before the names of all chains of range trees.
const TREE_PREFIX: &str = "PORTMAPPING-";
/// The longest comment that iptables takes (`XT_MAX_COMMENT_LEN` without its end).
const LONGEST: usize = 255;

/// What a note is about, in the chain of one leaf and so of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) host_port: HostPort,
    pub(super) host_ip: Option<IpAddr>,
}

impl Key {
    pub(super) fn of(mapping: &Mapping) -> Self {
        Self {
            host_port: mapping.host_port,
            host_ip: mapping.host_ip,
        }
    }
}

/// One rule: the owners of some mappings.
pub(super) type Note = Vec<(Key, PodUid)>;

/// The chains of notes that are as we write them, with their rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes(BTreeMap<String, Vec<Note>>);

/// What was found in the chain of notes of one leaf.
#[derive(Debug, Default)]
pub(super) struct Owners(BTreeMap<Key, Option<PodUid>>);

impl Owners {
    /// Whose a mapping is; None where nothing says it, or two say different things.
    pub(super) fn of(&self, key: &Key) -> Option<&PodUid> {
        self.0.get(key)?.as_ref()
    }
}

impl Notes {
    /// Reads one chain; also says whether it is as we write them.
    pub(super) fn read(&mut self, chain: &str, rules: &[&str]) -> (Owners, bool) {
        let read: Vec<Option<Note>> = rules.iter().map(|rule| parse(rule)).collect();
        let mut owners = Owners::default();
        let mut whole = true;
        for entry in &read {
            let Some(note) = entry else {
                whole = false;
                continue;
            };
            for (key, owner) in note {
                match owners.0.entry(*key) {
                    Entry::Vacant(free) => _ = free.insert(Some(owner.clone())),
                    Entry::Occupied(mut known) => {
                        whole = false;
                        // two that agree are one, and of two that do not neither is believed
                        if known.get().as_ref() != Some(owner) {
                            known.insert(None);
                        }
                    }
                }
            }
        }
        if whole {
            let rules = read.into_iter().flatten().collect();
            self.0.insert(chain.to_owned(), rules);
        }
        (owners, whole)
    }

    /// Whether a chain is there and can be appended to for this mapping.
    pub(super) fn has_room(&self, chain: &str, mapping: &Mapping) -> bool {
        let key = Key::of(mapping);
        let free = |note: &Note| note.iter().all(|(found, _)| *found != key);
        self.0
            .get(chain)
            .is_some_and(|notes| notes.iter().all(free))
    }

    /// Notes one mapping more, in a rule of its own, which is returned.
    pub(super) fn append(&mut self, chain: &str, mapping: &Mapping) -> String {
        let note = vec![(Key::of(mapping), mapping.owner.clone())];
        let rule = write(&note);
        self.0.entry(chain.to_owned()).or_default().push(note);
        rule
    }

    /// Takes the note of a mapping back if it has a rule of its own, which is returned.
    pub(super) fn withdraw(&mut self, chain: &str, mapping: &Mapping) -> Option<String> {
        let key = Key::of(mapping);
        let notes = self.0.get_mut(chain)?;
        let alone = |note: &Note| matches!(note.as_slice(), [(found, _)] if *found == key);
        let at = notes.iter().position(alone)?;
        Some(write(&notes.remove(at)))
    }

    /// Follows what a transaction does to whole chains.
    pub(super) fn follow(&mut self, transaction: &Transaction) {
        for chain in &transaction.obsolete {
            self.0.remove(chain);
        }
        let chains = transaction.chains.iter();
        for (chain, rules) in chains.filter(|(chain, _)| is_notes(chain)) {
            let notes = rules.iter().filter_map(|rule| parse(rule)).collect();
            self.0.insert(chain.clone(), notes);
        }
    }
}

/// Whether a chain holds notes, by its name.
pub(super) fn is_notes(chain: &str) -> bool {
    chain.starts_with(PREFIX)
}

/// What a chain of notes is about, by its name.
pub(super) fn protocol_of(chain: &str) -> Option<Protocol> {
    let mut parts = chain.strip_prefix(PREFIX)?.split('-');
    parts.next()?.parse().ok()
}

/// The chain with the notes of a leaf: named by its first port, which is enough to tell leaves of
/// one tree apart, and all that fits into 28 characters.
pub(super) fn chain_of(leaf: &str) -> String {
    let name = leaf.strip_prefix(TREE_PREFIX).unwrap_or(leaf);
    let mut parts = name.splitn(3, '-');
    let (protocol, first) = (parts.next().unwrap_or_default(), parts.next());
    match first {
        Some(first) => format!("{PREFIX}{protocol}-{first}"),
        None => format!("{PREFIX}{protocol}"),
    }
}

/// The notes of a leaf in as few rules as they fit into.
pub(super) fn rules<'a>(mappings: impl IntoIterator<Item = &'a Mapping>) -> Vec<String> {
    let entries: BTreeSet<(Key, &PodUid)> = mappings
        .into_iter()
        .map(|mapping| (Key::of(mapping), &mapping.owner))
        .collect();
    let mut comments: Vec<String> = Vec::new();
    for (key, owner) in entries {
        let entry = entry(&key, owner);
        match comments.last_mut() {
            Some(last) if last.len() + 1 + entry.len() <= LONGEST => {
                last.push(' ');
                last.push_str(&entry);
            }
            _ => comments.push(format!("{RULE_COMMENT_PREFIX}{entry}")),
        }
    }
    comments.iter().map(|comment| rule(comment)).collect()
}

fn write(note: &[(Key, PodUid)]) -> String {
    let entries: Vec<String> = note.iter().map(|(key, owner)| entry(key, owner)).collect();
    rule(&format!("{RULE_COMMENT_PREFIX}{}", entries.join(" ")))
}

fn rule(comment: &str) -> String {
    format!("-m comment --comment \"{comment}\"")
}

fn entry(key: &Key, owner: &PodUid) -> String {
    let mut text = key.host_port.to_string();
    if let Some(host_ip) = key.host_ip {
        // a String takes everything
        let _ = write!(text, "@{host_ip}");
    }
    let _ = write!(text, "={owner}");
    text
}

/// None where the rule is no note, or has anything else in it.
fn parse(rule: &str) -> Option<Note> {
    let as_written = rule
        .strip_prefix("-m comment --comment \"")
        .and_then(|rest| rest.strip_suffix('"'))
        .filter(|comment| !comment.contains(['"', '\\']));
    if let Some(comment) = as_written {
        return entries(comment);
    }
    entries(Rule::parse(rule)?.lone_comment()?)
}

/// What the comment of a rule notes, if it is one of ours.
pub(super) fn entries(comment: &str) -> Option<Note> {
    let entries = comment.strip_prefix(RULE_COMMENT_PREFIX)?.split(' ');
    entries
        .map(|entry| {
            let (key, owner) = entry.split_once('=')?;
            let (port, host_ip) = match key.split_once('@') {
                Some((port, host_ip)) => (port, Some(host_ip.parse().ok()?)),
                None => (key, None),
            };
            let key = Key {
                host_port: HostPort::new(port.parse().ok()?)?,
                host_ip,
            };
            Some((key, owner.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests;
