//! Desired against observed mappings: the difference, as one change set.

use std::collections::BTreeSet;

use crate::Mapping;

/// What must change in the kernel. Foreign rules never appear here: no one reads them in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// How many mappings stay as they are.
    pub unchanged: usize,
    /// Mappings in the kernel that nobody wants.
    pub to_remove: Vec<Mapping>,
    /// Mappings wanted that the kernel lacks.
    pub to_create: Vec<Mapping>,
}

impl Plan {
    /// The difference between what should be and what is.
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
