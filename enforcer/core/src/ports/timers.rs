//! When something is due: ports whose rest ends, pods to process again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_shared::PortKey;

/// When each port is due.
pub(crate) type PortTimers = Timers<PortKey>;

/// At most one moment for each key, and the keys in the order of their moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timers<K> {
    at: BTreeMap<K, Duration>,
    order: BTreeSet<(Duration, K)>,
}

impl<K: Ord> Default for Timers<K> {
    fn default() -> Self {
        Self {
            at: BTreeMap::new(),
            order: BTreeSet::new(),
        }
    }
}

impl<K: Clone + Ord> Timers<K> {
    /// Replaces the key's moment; None removes it.
    pub(crate) fn set(&mut self, key: &K, at: Option<Duration>) {
        if self.at.get(key).copied() == at {
            return;
        }
        if let Some(old) = self.at.remove(key) {
            self.order.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.at.insert(key.clone(), at);
            self.order.insert((at, key.clone()));
        }
    }

    /// The keys whose moment has come, the earliest first. They stay until `set` changes them.
    pub(crate) fn due(&self, now: Duration) -> Vec<K> {
        let due = self.order.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, key)| key.clone()).collect()
    }

    /// The earliest moment.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(at, _)| *at)
    }
}
