//! One address family of one node: what its table has, and the transactions that change it.
//!
//! What was last seen is believed until the next look, so there must be one writer. A second one
//! (an enforcer that still ends, say) can do no more harm than to double a rule, which the next
//! look finds.

use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};

use portmapping_shared::Mapping;

use crate::preparations::Place;
use crate::{DataplaneError, Observed};

use super::commands::Commands;
use super::jumps;
use super::layout::{Hairpin, Layout};
use super::probe;
use super::reading::{Damage, Known};
use super::settings::Subnet;

mod change;

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
    /// Keyed at random: nobody can make a text that passes for another.
    hashing: RandomState,
}

impl Side {
    pub(super) fn new(commands: Commands, layout: Layout) -> Self {
        Self {
            commands,
            layout,
            probed: false,
            known: None,
            installed: false,
            spare: Place::default(),
            hashing: RandomState::new(),
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
        let text_read = self.fingerprint(text);
        if let Some(known) = &self.known
            && known.text_read == Some(text_read)
        {
            return (observed(known), false);
        }
        let believed = self.known.take();
        let known = Known {
            text_read: Some(text_read),
            ..self.read(text)
        };
        let same = |believed: &Known| believed.leaves == known.leaves;
        // a rule that leads elsewhere than it was made to is still one that can be read
        let strange = |believed: &Known| {
            let mut leaves = known.leaves.iter();
            leaves.any(|(leaf, mappings)| {
                let there = believed.leaves.get(leaf);
                !there.is_some_and(|there| mappings.is_subset(there))
            })
        };
        let (altered, strange) = match &believed {
            Some(believed) if same(believed) => (believed.damage != known.damage, false),
            Some(believed) => (true, strange(believed)),
            None => (false, false),
        };
        let mut observed = observed(&known);
        observed.intact &= !strange;
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
        let (mut next, transaction) = self.prepare(known, remove, create, single);
        next.text_read = None;
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

    /// Of the text without what changes by itself: the time, and how many packets came by.
    fn fingerprint(&self, text: &str) -> u64 {
        let mut hasher = self.hashing.build_hasher();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let declared = line.starts_with(':');
            let line = line.split('[').next().filter(|_| declared).unwrap_or(line);
            line.hash(&mut hasher);
        }
        hasher.finish()
    }

    fn look(&self) -> Result<Known, DataplaneError> {
        Ok(self.read(&self.commands.save_nat()?))
    }

    fn read(&self, text: &str) -> Known {
        Known::read(text, self.commands.family, &self.layout)
    }
}

fn observed(known: &Known) -> Observed {
    Observed {
        mappings: known.leaves.values().flatten().cloned().collect(),
        intact: known.untouched || known.damage == Damage::default(),
    }
}

#[cfg(test)]
mod tests;
