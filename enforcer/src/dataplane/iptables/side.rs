//! One address family of one node: what its table has, and the transactions that change it.
//!
//! What was last seen is believed until the next look, so there must be one writer. A second one
//! (an enforcer that still ends, say) can do no more harm than to double a rule, which the next
//! look finds.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::Mapping;

use crate::dataplane::preparations::Place;
use crate::dataplane::{DataplaneError, Observed};

use super::commands::Commands;
use super::family::Flavour;
use super::jumps;
use super::layout::{Hairpin, Layout, bucket, leaf_rules, mapping_rule};
use super::notes;
use super::probe;
use super::reading::{Damage, Known};
use super::settings::Subnet;
use super::transaction::Transaction;

/// One family's rules.
#[derive(Debug)]
pub(super) struct Side {
    commands: Commands,
    layout: Layout,
    /// Whether it was found out what this node can do.
    probed: bool,
    /// None before the first look, and after a failure that may have left anything.
    known: Option<Known>,
    /// The jumps were there once: what is missing now goes back with all the rest.
    installed: bool,
    /// The program for the next change.
    spare: Place,
}

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
    pub(super) fn new(commands: Commands, layout: Layout) -> Self {
        Self {
            commands,
            layout,
            probed: false,
            known: None,
            installed: false,
            spare: Place::default(),
        }
    }

    /// The program for the next change, and where it is to wait.
    pub(super) fn preparation(&self) -> (Commands, Place) {
        (self.commands.clone(), Place::clone(&self.spare))
    }

    /// The programs to read the table with.
    pub(super) fn commands(&self) -> &Commands {
        &self.commands
    }

    /// Finds out what this node can do. Where the table is not in use yet, that waits for the first
    /// mapping: to find out would make it.
    pub(super) fn open(&mut self) {
        if self.commands.has_nat() {
            self.probe();
        }
    }

    fn probe(&mut self) {
        if self.probed {
            return;
        }
        let family = self.commands.family;
        let hairpin = match probe::compares(&self.commands) {
            Ok(true) => Hairpin::Compared,
            Ok(false) => Hairpin::PerPod,
            Err(error) => {
                // it is tried again, and what is wrong is said when it prevents a change
                tracing::debug!(%error, %family, "cannot find out what iptables can do");
                return;
            }
        };
        self.probed = true;
        tracing::info!(%family, program = %self.commands.flavour, "{hairpin}");
        if hairpin != self.layout.hairpin() {
            self.layout.set_hairpin(hairpin);
            self.known = None;
        }
    }

    /// Takes in the table as it was printed. Also says whether it differs from what was believed.
    pub(super) fn take(&mut self, text: &str) -> (Observed, bool) {
        let believed = self.known.take();
        let known = self.read(text);
        let altered = believed.as_ref().is_some_and(|believed| {
            believed.leaves != known.leaves || believed.damage != known.damage
        });
        // a rule that leads elsewhere than it was made to is still one that can be read
        let strange = believed.is_some_and(|believed| {
            let mut mappings = known
                .leaves
                .iter()
                .flat_map(|(leaf, mappings)| mappings.iter().map(move |mapping| (leaf, mapping)));
            mappings.any(|(leaf, mapping)| {
                let there = believed.leaves.get(leaf);
                there.is_none_or(|there| !there.contains(mapping))
            })
        });
        let observed = Observed {
            mappings: known.leaves.values().flatten().cloned().collect(),
            intact: !strange && (known.untouched || known.damage == Damage::default()),
        };
        // an earlier run of this program may have made the jumps
        self.installed |= !known.untouched && known.damage.missing_jumps.is_empty();
        self.known = Some(known);
        (observed, altered)
    }

    /// Makes the frame whole and changes mappings, in one transaction; only the first jumps are
    /// made before it. Says how many commits it
    /// took, where that is known.
    pub(super) fn apply(
        &mut self,
        remove: &[&Mapping],
        create: &[&Mapping],
    ) -> Result<Option<u32>, DataplaneError> {
        if !create.is_empty() {
            self.probe();
        }
        // after a failure the kernel is looked at again, and what is touched is written anew: single
        // rules are changed only where it is certain what is there
        let (mut known, single) = match self.known.take() {
            Some(known) => (known, true),
            None => (self.look()?, false),
        };
        let nothing_to_do =
            remove.is_empty() && create.is_empty() && known.damage == Damage::default();
        if nothing_to_do || (known.untouched && create.is_empty()) {
            self.known = Some(known);
            return Ok(Some(0));
        }
        let missing_jumps = std::mem::take(&mut known.damage.missing_jumps);
        let missing_jumps = if self.installed {
            let gone = missing_jumps.into_iter().map(|jump| (jump, Vec::new()));
            known.damage.misplaced_jumps.extend(gone);
            Vec::new()
        } else {
            missing_jumps
        };
        let (next, transaction) = self.prepare(known, remove, create, single);
        let jumps = jumps::make(&self.commands, &missing_jumps)?;
        let spare = self.spare.lock().take();
        if let Err(error) = self.commands.restore(&transaction, spare) {
            jumps.undo(&self.commands);
            return Err(error);
        }
        self.known = Some(next);
        self.installed = true;
        // jumps are made one by one, each in as many steps as it takes
        Ok(missing_jumps
            .is_empty()
            .then(|| u32::from(!transaction.is_empty())))
    }

    /// Whether rules of ours are there, as of the last look or change.
    pub(super) fn is_in_use(&self) -> bool {
        self.known.as_ref().is_some_and(|known| !known.untouched)
    }

    /// The frame is another one from now on; what is there is compared with it anew.
    pub(super) fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.layout.set_neighbours(neighbours);
        self.known = None;
    }

    /// Forgets what was seen: somebody else is about to change it.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    fn look(&self) -> Result<Known, DataplaneError> {
        Ok(self.read(&self.commands.save_nat()?))
    }

    fn read(&self, text: &str) -> Known {
        Known::read(text, self.commands.family, &self.layout)
    }

    /// What will be there, and the transaction that leads there. Without damage and without a new
    /// protocol it costs no more than the change is large.
    ///
    /// Single rules cost iptables-nft least: adding makes the kernel check every rule of the table
    /// that a packet can come to, and rewriting a leaf adds all of its rules.
    fn prepare(
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

#[cfg(test)]
mod tests;
