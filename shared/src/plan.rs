//! The difference between desired and observed mappings, as one change set.

use std::collections::BTreeSet;

use crate::Mapping;

/// What must change in the kernel. It holds only our own mappings: rules of other programs are never
/// read as mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many mappings stay as they are.
    pub unchanged: usize,
    /// Mappings in the kernel that are not desired.
    pub to_remove: Vec<Mapping>,
    /// Desired mappings that the kernel does not have.
    pub to_create: Vec<Mapping>,
}

impl Plan {
    /// Computes the difference.
    #[must_use]
    pub fn new(desired: &BTreeSet<Mapping>, observed: &BTreeSet<Mapping>) -> Self {
        Self {
            unchanged: desired.intersection(observed).count(),
            to_remove: observed.difference(desired).cloned().collect(),
            to_create: desired.difference(observed).cloned().collect(),
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.to_remove.is_empty() && self.to_create.is_empty()
    }
}
