//! What the table holds, as of the last look or change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_shared::Mapping;

use crate::dataplane::iptables::Family;

use super::element::{Foreign, Slot, hairpin_key, key_bytes};
use super::sets::SetId;

/// An element by its set and raw key.
pub(super) type RawKey = (SetId, Vec<u8>);

/// How the frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FrameState {
    /// There is no table, as on a node without mappings.
    #[default]
    Missing,
    /// Something is missing or different from ours.
    Damaged,
    /// As it should be.
    Whole,
}

/// The table's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) frame: FrameState,
    /// The kernel's generation when this was read.
    pub(super) generation: u32,
    pub(super) mappings: BTreeMap<Slot, Mapping>,
    /// How many mappings each pod address has.
    pub(super) pods: BTreeMap<IpAddr, usize>,
    /// Pod addresses with an element of ours in the hairpin sets.
    pub(super) hairpins: BTreeSet<IpAddr>,
    /// Pod addresses whose hairpin element is missing or not needed.
    pub(super) unsettled: BTreeSet<IpAddr>,
    /// Elements of others.
    pub(super) foreign: BTreeMap<RawKey, Foreign>,
    /// Elements that somebody put in the place of ours.
    pub(super) usurped: BTreeSet<RawKey>,
}

impl Content {
    /// Whether there is nothing to repair. A hairpin element too many does no harm, and goes with
    /// the next change.
    pub(super) fn is_intact(&self) -> bool {
        let missing = self.unsettled.iter().any(|ip| self.pods.contains_key(ip));
        self.frame != FrameState::Damaged && self.usurped.is_empty() && !missing
    }

    /// Whether a mapping is gone or another one since.
    pub(super) fn lacks_any_of(&self, before: &Self) -> bool {
        let mut before = before.mappings.iter();
        before.any(|(slot, mapping)| self.mappings.get(slot) != Some(mapping))
    }

    /// Counts pods and finds what is wrong with the hairpin sets, once all is read.
    pub(super) fn settle(&mut self) {
        for mapping in self.mappings.values() {
            *self.pods.entry(mapping.pod_ip).or_default() += 1;
        }
        let needed = |ip: &&IpAddr| self.pods.contains_key(*ip);
        let missing = self.pods.keys().filter(|ip| !self.has_hairpin(**ip));
        let needless = self.hairpins.iter().filter(|ip| !needed(ip));
        self.unsettled = missing.chain(needless).copied().collect();
    }

    /// Whether the pod address is in the hairpin set, whoever put it there.
    pub(super) fn has_hairpin(&self, ip: IpAddr) -> bool {
        self.hairpins.contains(&ip) || self.has_foreign_hairpin(ip)
    }

    /// Whether somebody else put the pod address into the hairpin set.
    pub(super) fn has_foreign_hairpin(&self, ip: IpAddr) -> bool {
        let set = SetId::Hairpin(Family::of(ip));
        !self.foreign.is_empty() && self.foreign.contains_key(&(set, hairpin_key(ip)))
    }

    /// The element of somebody else in a slot.
    pub(super) fn is_foreign(&self, slot: &Slot) -> bool {
        !self.foreign.is_empty() && self.foreign.contains_key(&(slot.set(), key_bytes(slot)))
    }
}
