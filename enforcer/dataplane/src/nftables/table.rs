//! What the table holds, as of the last read or change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_shared::Mapping;

use super::element::{Foreign, Slot, key_bytes};
use super::sets::SetId;

/// An element by its set and raw key.
pub(super) type RawKey = (SetId, Vec<u8>);

/// The state of the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum FrameState {
    /// There is no table, as on a node without mappings.
    #[default]
    Missing,
    /// Something is missing or different from ours.
    Damaged,
    /// It is as it should be.
    Whole,
}

/// The table's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) frame: FrameState,
    /// The kernel's generation when this was read.
    pub(super) generation: u32,
    pub(super) mappings: BTreeMap<Slot, Mapping>,
    /// Foreign elements.
    pub(super) foreign: BTreeMap<RawKey, Foreign>,
    /// Foreign elements that have the keys of ours.
    pub(super) usurped: BTreeSet<RawKey>,
    /// The addresses at which the table answers.
    pub(super) host_addresses: BTreeSet<IpAddr>,
}

impl Content {
    /// Returns whether there is nothing to repair.
    pub(super) fn is_intact(&self) -> bool {
        self.frame != FrameState::Damaged && self.usurped.is_empty()
    }

    /// Returns whether a mapping of `before` is missing or has changed.
    pub(super) fn lacks_any_of(&self, before: &Self) -> bool {
        let mut now = self.mappings.iter();
        // both are in the same order
        let gone = |before| !now.any(|mapping| mapping == before);
        before.mappings.iter().any(gone)
    }

    /// Returns whether a foreign element is in a slot.
    pub(super) fn is_foreign(&self, slot: &Slot) -> bool {
        !self.foreign.is_empty() && self.foreign.contains_key(&(slot.set(), key_bytes(slot)))
    }
}
