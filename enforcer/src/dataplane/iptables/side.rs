//! One address family of one node: what its table has, and the transactions that change it.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::{Mapping, Protocol};

use crate::dataplane::{DataplaneError, Observed};

use super::commands::Commands;
use super::jumps;
use super::layout::{JUMP_COMMENT, JUMPS, Jump, Layout, Leaves};
use super::rule::Rule;
use super::save::{Reference, Saved};
use super::transaction::Transaction;
use super::tree::Tree;

/// One family's rules.
#[derive(Debug)]
pub(super) struct Side {
    commands: Commands,
    layout: Layout,
    /// None before the first look, and after a failure that may have left anything.
    known: Option<Known>,
}

/// What is in the kernel, as of the last look or change.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Nothing of ours is there, as on a node without mappings.
    untouched: bool,
    /// Protocols that have a range tree.
    protocols: BTreeSet<Protocol>,
    leaves: Leaves,
    damage: Damage,
}

/// How the frame differs from what it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Damage {
    /// Chains that are missing or have other rules than ours.
    chains: BTreeSet<String>,
    /// Chains of ours that should not be: another layout made them.
    obsolete: Vec<String>,
    missing_jumps: Vec<Jump>,
    /// Jumps that are not the first of their chain, or were edited: those rules, to be deleted.
    misplaced_jumps: Vec<(Jump, Vec<String>)>,
}

impl Side {
    pub(super) fn new(commands: Commands, layout: Layout) -> Self {
        Self {
            commands,
            layout,
            known: None,
        }
    }

    /// Reads the table.
    pub(super) fn observe(&mut self) -> Result<Observed, DataplaneError> {
        self.known = None;
        let known = self.look()?;
        let observed = Observed {
            mappings: known.leaves.values().flatten().cloned().collect(),
            intact: known.untouched || known.damage == Damage::default(),
        };
        self.known = Some(known);
        Ok(observed)
    }

    /// Makes the frame whole and changes mappings, in one transaction.
    pub(super) fn apply(
        &mut self,
        remove: &[&Mapping],
        create: &[&Mapping],
    ) -> Result<(), DataplaneError> {
        let known = match self.known.take() {
            Some(known) => known,
            None => self.look()?,
        };
        if known.untouched && create.is_empty() {
            self.known = Some(known);
            return Ok(());
        }
        let (next, transaction) = self.prepare(&known, remove, create);
        let jumps = jumps::make(&self.commands, &known.damage.missing_jumps)?;
        if let Err(error) = self.commands.restore(&transaction) {
            jumps.undo(&self.commands);
            return Err(error);
        }
        self.known = Some(next);
        Ok(())
    }

    /// Forgets what was seen: somebody else is about to change it.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    fn look(&self) -> Result<Known, DataplaneError> {
        Ok(self.read(&self.commands.save_nat()?))
    }

    fn read(&self, text: &str) -> Known {
        let saved = Saved::parse(text);
        let mappings = saved.chains.values().flatten().filter_map(|rule| {
            // most rules of ours are no mapping, and this is cheaper than parsing them
            let rule = rule.contains(" -j DNAT ").then(|| Rule::parse(rule))??;
            rule.mapping(self.commands.family)
        });
        let leaves = self.layout.leaves(mappings);
        let rooted = |protocol: &Protocol| {
            let in_use = leaves
                .values()
                .flatten()
                .any(|mapping| mapping.protocol == *protocol);
            in_use || saved.chains.contains_key(Tree::root(*protocol).as_str())
        };
        let protocols: BTreeSet<Protocol> = Protocol::ALL.into_iter().filter(rooted).collect();
        let damage = self.damage(&saved, &protocols, &leaves);
        Known {
            untouched: saved.is_empty(),
            protocols,
            leaves,
            damage,
        }
    }

    fn damage(&self, saved: &Saved<'_>, protocols: &BTreeSet<Protocol>, leaves: &Leaves) -> Damage {
        let expected = self.layout.chains(protocols, leaves);
        let differs = |(chain, rules): &(&String, &Vec<String>)| {
            !saved
                .chains
                .get(chain.as_str())
                .is_some_and(|found| same_rules(rules, found))
        };
        let mut damage = Damage {
            chains: expected
                .iter()
                .filter(differs)
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

    /// What will be there, and the transaction that leads there.
    fn prepare(
        &self,
        known: &Known,
        remove: &[&Mapping],
        create: &[&Mapping],
    ) -> (Known, Transaction) {
        let mut next = known.clone();
        let mut touched = known.damage.chains.clone();
        for mapping in remove {
            let leaf = self.layout.leaf(mapping);
            if let Some(mappings) = next.leaves.get_mut(&leaf) {
                mappings.remove(*mapping);
            }
            touched.insert(leaf);
        }
        for mapping in create {
            let leaf = self.layout.leaf(mapping);
            next.leaves
                .entry(leaf.clone())
                .or_default()
                .insert((*mapping).clone());
            next.protocols.insert(mapping.protocol);
            touched.insert(leaf);
        }
        next.leaves.retain(|_, mappings| !mappings.is_empty());
        next.damage = Damage::default();
        next.untouched = false;
        let transaction = self.transaction(known, &next, &touched);
        (next, transaction)
    }

    fn transaction(&self, known: &Known, next: &Known, touched: &BTreeSet<String>) -> Transaction {
        let same_frame = known.protocols == next.protocols
            && outside_chains(&known.leaves).eq(outside_chains(&next.leaves))
            && known.damage.chains.is_empty();
        let mut chains = BTreeMap::new();
        let mut obsolete = known.damage.obsolete.clone();
        if same_frame {
            for leaf in touched {
                let rules = next
                    .leaves
                    .get(leaf)
                    .map(|mappings| self.layout.leaf_rules(mappings));
                chains.insert(leaf.clone(), rules.unwrap_or_default());
            }
        } else {
            let before = self.layout.chains(&known.protocols, &known.leaves);
            let mut after = self.layout.chains(&next.protocols, &next.leaves);
            obsolete.extend(
                before
                    .keys()
                    .filter(|chain| !after.contains_key(*chain))
                    .cloned(),
            );
            after.retain(|chain, rules| {
                touched.contains(chain) || before.get(chain).is_none_or(|old| old != rules)
            });
            chains = after;
        }
        // a chain that was obsolete as it stood may be wanted again
        obsolete.retain(|chain| !chains.contains_key(chain));
        let misplaced = || known.damage.misplaced_jumps.iter();
        let deletions = misplaced().flat_map(|(jump, rules)| {
            rules
                .iter()
                .map(|rule| (jump.from.to_owned(), rule.clone()))
        });
        Transaction {
            chains,
            obsolete,
            deleted: deletions.collect(),
            inserted: misplaced()
                .map(|(jump, _)| (jump.from.to_owned(), jump.rule.to_owned()))
                .collect(),
        }
    }
}

/// Chains for ports outside the range, which the entry chain names.
fn outside_chains(leaves: &Leaves) -> impl Iterator<Item = &String> {
    let outside = Protocol::ALL.map(Tree::outside);
    leaves.keys().filter(move |chain| outside.contains(chain))
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

#[cfg(test)]
mod tests;
