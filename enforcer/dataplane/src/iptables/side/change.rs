//! A change of one family, as one transaction. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::Mapping;

use super::super::family::Flavour;
use super::super::layout::{bucket, leaf_rules, mapping_rule};
use super::super::notes;
use super::super::reading::{Damage, Known};
use super::super::transaction::Transaction;
use super::Side;

/// The chains that a change touches.
#[derive(Debug, Default)]
struct Touched {
    /// To be written anew.
    rewritten: BTreeSet<String>,
    /// Rules to be put behind those that are there.
    appended: Vec<(String, String)>,
    /// Rules to be taken out from among the others.
    removed: Vec<(String, String)>,
}

impl Touched {
    /// A chain that is written anew needs no changes of single rules.
    fn rewrite(&mut self, all: bool) {
        if all {
            let single = self.appended.iter().chain(&self.removed);
            self.rewritten
                .extend(single.map(|(chain, _)| chain.clone()));
        }
        let stays = |(chain, _): &(String, String)| !self.rewritten.contains(chain);
        self.appended.retain(stays);
        self.removed.retain(stays);
    }
}

/// With more removals than this, leaves are written anew instead: each costs a search.
const MAX_SINGLE: usize = 32;

impl Side {
    /// What will be there, and the transaction that leads there. Without damage and without a new
    /// protocol it costs no more than the change is large.
    ///
    /// Single rules cost iptables-nft least: adding makes the kernel check every rule of the table
    /// that a packet can come to, and rewriting a leaf adds all of its rules.
    pub(super) fn prepare(
        &self,
        mut known: Known,
        remove: &[&Mapping],
        create: &[&Mapping],
        single: bool,
    ) -> (Known, Transaction) {
        let frame_stays = known.damage.chains.is_empty()
            && create.iter().all(|m| known.protocols.contains(&m.protocol))
            && remove
                .iter()
                .chain(create)
                .all(|m| self.layout.is_in_range(m));
        let before = (!frame_stays).then(|| self.chains(&known));
        let damage = std::mem::take(&mut known.damage);
        known.untouched = false;
        let mut touched = self.change(&mut known, remove, create);
        touched.rewrite(!single || before.is_some() || remove.len() > MAX_SINGLE);
        let transaction = self.transaction(&known, before, damage, touched);
        known.notes.follow(&transaction);
        (known, transaction)
    }

    fn chains(&self, known: &Known) -> BTreeMap<String, Vec<String>> {
        self.layout
            .chains(&known.protocols, &known.leaves, &known.pods)
    }

    fn change(&self, known: &mut Known, remove: &[&Mapping], create: &[&Mapping]) -> Touched {
        let mut touched = Touched::default();
        for mapping in remove {
            let leaf = self.layout.leaf(mapping);
            let Entry::Occupied(mut found) = known.leaves.entry(leaf.clone()) else {
                touched.rewritten.insert(leaf);
                continue;
            };
            if !found.get_mut().remove(*mapping) {
                touched.rewritten.insert(leaf);
                continue;
            }
            if found.get().is_empty() {
                found.remove();
            }
            if let Some(count) = known.pods.get_mut(&mapping.pod_ip) {
                *count = count.saturating_sub(1);
            }
            let notes = notes::chain_of(&leaf);
            match known.notes.withdraw(&notes, mapping) {
                Some(rule) if !self.packs() => touched.removed.push((notes, rule)),
                _ => _ = touched.rewritten.insert(notes),
            }
            touched.removed.push((leaf, mapping_rule(mapping)));
        }
        for mapping in create {
            known.protocols.insert(mapping.protocol);
            let leaf = self.layout.leaf(mapping);
            let mappings = known.leaves.entry(leaf.clone()).or_default();
            // rules of one port have an order
            let alone = mappings.iter().all(|m| m.host_port != mapping.host_port);
            if mappings.insert((*mapping).clone()) && self.layout.has_pod_rules() {
                let had_rule = known.pods.contains_key(&mapping.pod_ip);
                let pods = known.pods.entry(mapping.pod_ip).or_default();
                *pods += 1;
                if !had_rule {
                    let rule = self.layout.pod_rule(mapping.pod_ip);
                    touched.appended.push((bucket(mapping.pod_ip), rule));
                }
            }
            let notes = notes::chain_of(&leaf);
            if self.packs() || !known.notes.has_room(&notes, mapping) {
                touched.rewritten.insert(notes);
            } else {
                let rule = known.notes.append(&notes, mapping);
                touched.appended.push((notes, rule));
            }
            if alone {
                touched.appended.push((leaf, mapping_rule(mapping)));
            } else {
                touched.rewritten.insert(leaf);
            }
        }
        let left = known.pods.extract_if(.., |_, count| *count == 0);
        let left = left.map(|(pod, _)| (bucket(pod), self.layout.pod_rule(pod)));
        touched.removed.extend(left);
        touched
    }

    /// Whether the notes of a leaf are written anew at each change: with iptables-legacy every
    /// change writes the whole table, and each rule costs.
    fn packs(&self) -> bool {
        self.commands.flavour == Flavour::Legacy
    }

    fn transaction(
        &self,
        known: &Known,
        before: Option<BTreeMap<String, Vec<String>>>,
        damage: Damage,
        touched: Touched,
    ) -> Transaction {
        let mut obsolete = damage.obsolete;
        let chains = if let Some(before) = before {
            let mut after = self.chains(known);
            let gone = before.keys().filter(|chain| !after.contains_key(*chain));
            obsolete.extend(gone.cloned());
            after.retain(|chain, rules| {
                damage.chains.contains(chain)
                    || touched.rewritten.contains(chain)
                    || before.get(chain).is_none_or(|old| old != rules)
            });
            after
        } else {
            self.rules_of(known, touched.rewritten)
        };
        // a chain that was obsolete as it stood may be wanted again
        obsolete.retain(|chain| !chains.contains_key(chain));
        let misplaced = || damage.misplaced_jumps.iter();
        let deletions = misplaced().flat_map(|(jump, rules)| {
            rules
                .iter()
                .map(|rule| (jump.from.to_owned(), rule.clone()))
        });
        Transaction {
            chains,
            appended: touched.appended,
            obsolete,
            deleted: deletions.chain(touched.removed).collect(),
            inserted: misplaced()
                .map(|(jump, _)| (jump.from.to_owned(), jump.rule.to_owned()))
                .collect(),
        }
    }

    /// The rules of leaves, of their notes, and of chains of pods.
    fn rules_of(&self, known: &Known, chains: BTreeSet<String>) -> BTreeMap<String, Vec<String>> {
        let rules = |chain: &String| {
            if let Some(mappings) = known.leaves.get(chain) {
                return leaf_rules(mappings);
            }
            if let Some(leaf) = self.layout.leaf_of_notes(chain) {
                return notes::rules(known.leaves.get(&leaf).into_iter().flatten());
            }
            let pods = known.pods.keys();
            let here = pods.filter(|pod| bucket(**pod) == *chain);
            here.map(|pod| self.layout.pod_rule(*pod)).collect()
        };
        chains
            .into_iter()
            .map(|chain| {
                let rules = rules(&chain);
                (chain, rules)
            })
            .collect()
    }
}
