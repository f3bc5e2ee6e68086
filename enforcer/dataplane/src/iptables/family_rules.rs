//! One address family of one node: what its table has, and the transactions that change it.
//!
//! The driver relies on what it read last until the next read, so there must be one writer. A
//! second one (an enforcer that is being terminated) can at most duplicate a rule. The next read
//! finds that.

use portmapping_shared::Mapping;

use super::commands::Commands;
use super::invalid::InvalidRules;
use super::jumps;
use super::layout::Layout;
use super::reading::{Damage, Known};
use crate::family::Family;
use crate::settings::Settings;
use crate::{DataplaneError, Observed};

mod change;

/// One family's rules.
#[derive(Debug)]
pub(super) struct FamilyRules {
    commands: Commands,
    layout: Layout,
    invalid: InvalidRules,
    /// None after a failure or a change of the layout: the table must be read before it is used.
    known: Option<Known>,
    /// Whether the jumps stay behind rules of another program.
    gives_way: bool,
    /// Whether the jumps existed once. From then on, the transaction restores missing jumps.
    installed: bool,
}

/// What a read of the table shows.
pub(super) struct Reading {
    pub(super) observed: Observed,
    /// Whether another program changed something of ours.
    pub(super) altered: bool,
    /// Whether it is not intact only because rules of other programs come before our jumps.
    pub(super) only_order: bool,
}

impl FamilyRules {
    pub(super) fn new(commands: Commands, settings: Settings) -> Self {
        let invalid = InvalidRules::new(commands.clone(), &settings);
        let layout = Layout::new(commands.family, settings);
        Self {
            invalid,
            commands,
            layout,
            known: None,
            gives_way: false,
            installed: false,
        }
    }

    /// Returns the tables as iptables-save prints them, and records table mangle.
    pub(super) fn read(&mut self) -> Result<String, DataplaneError> {
        let text = self.commands.save_ours()?;
        self.take_invalid(&text);
        Ok(text)
    }

    /// Records table mangle as iptables-save printed it.
    pub(super) fn take_invalid(&mut self, text: &str) {
        self.invalid.take(text);
    }

    /// Returns what was read last, if it is still known to be current.
    pub(super) fn observed(&self) -> Option<Observed> {
        self.known.as_ref().map(|known| Observed {
            mappings: known.mappings().cloned().collect(),
            intact: known.untouched
                || known.damage == Damage::default() && self.invalid.is_intact(),
            host_addresses: known.host_addresses.clone(),
            ..Observed::default()
        })
    }

    /// Records the table as iptables-save printed it.
    pub(super) fn take(&mut self, text: &str) -> Reading {
        let believed = self.known.take();
        let mut known = self.parse(text);
        if self.gives_way && known.damage.is_order_only() {
            known.damage.misplaced_jumps.clear();
        }
        // a rule that another program sent to a different pod can still be read
        let strange = |believed: &Known| {
            let mut leaves = known.leaves.iter();
            leaves.any(|(leaf, mappings)| {
                let there = believed.leaves.get(leaf);
                !there.is_some_and(|there| mappings.is_subset(there))
            })
        };
        let (altered, strange) = match &believed {
            Some(believed) if believed.leaves == known.leaves => {
                let invalid = !known.untouched && !self.invalid.is_intact();
                (invalid || believed.damage != known.damage, false)
            }
            Some(believed) => (true, strange(believed)),
            None => (false, false),
        };
        // an earlier run of this program may have made the jumps
        self.installed |= !known.untouched && known.damage.missing_jumps.is_empty();
        let only_order = known.damage.is_order_only() && !strange && self.invalid.is_intact();
        self.known = Some(known);
        let mut observed = self.observed().unwrap_or_default();
        observed.intact &= !strange;
        Reading {
            observed,
            altered,
            only_order,
        }
    }

    /// Returns the jumps that are not the first rules of their chains, by chain.
    pub(super) fn displaced(&self) -> Vec<(Family, &'static str)> {
        let jumps = self
            .known
            .iter()
            .flat_map(|known| &known.damage.misplaced_jumps);
        jumps
            .map(|(jump, _)| (self.commands.family, jump.from))
            .collect()
    }

    /// Leaves the jumps where they are from now on, as long as only rules of other programs come
    /// before them.
    pub(super) fn give_way(&mut self) {
        self.gives_way = true;
        if let Some(known) = &mut self.known
            && known.damage.is_order_only()
        {
            known.damage.misplaced_jumps.clear();
        }
    }

    /// Repairs all chains and jumps and changes mappings, in one transaction; only the first jumps
    /// are made before it. Returns the number of commits, if it is known.
    pub(super) fn apply(
        &mut self,
        remove: &[&Mapping],
        create: &[&Mapping],
    ) -> Result<Option<u32>, DataplaneError> {
        let mut known = if let Some(known) = self.known.take() {
            known
        } else {
            let text = self.read()?;
            self.parse(&text)
        };
        let nothing_to_do = remove.is_empty()
            && create.is_empty()
            && known.damage == Damage::default()
            && self.invalid.is_intact();
        if nothing_to_do || (known.untouched && create.is_empty()) {
            self.known = Some(known);
            return Ok(Some(0));
        }
        let mut missing_jumps = std::mem::take(&mut known.damage.missing_jumps);
        if self.installed {
            let gone = missing_jumps.drain(..).map(|jump| (jump, Vec::new()));
            known.damage.misplaced_jumps.extend(gone);
        }
        let (next, transaction) = change::prepare(&self.layout, known, remove, create);
        let jumps = jumps::make(&self.commands, &missing_jumps)?;
        if let Err(error) = self.commands.restore(&transaction) {
            jumps.undo(&self.commands);
            return Err(error);
        }
        self.known = Some(next);
        self.installed = true;
        let invalid = self.invalid.apply();
        // jumps are made one by one, each in an unknown number of commits
        Ok(missing_jumps
            .is_empty()
            .then(|| u32::from(!transaction.is_empty()) + invalid))
    }

    /// Changes settings. The next change or read compares the tables with the new layout.
    pub(super) fn change_settings(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.layout.settings);
        self.invalid.set(&self.layout.settings);
        self.known = None;
    }

    /// Discards what was read.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }

    fn parse(&self, text: &str) -> Known {
        Known::read(text, self.commands.family, &self.layout)
    }
}

#[cfg(test)]
mod tests;
