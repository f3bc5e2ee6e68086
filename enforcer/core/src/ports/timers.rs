//! Things that must rest until a moment: released ports cooling down, strangers' ports in
//! quarantine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ports::PortKey;

/// Ports with the moment each of them may be touched again.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortTimers {
    until: BTreeMap<PortKey, Duration>,
    order: BTreeSet<(Duration, PortKey)>,
}

impl PortTimers {
    /// Puts a port to rest; an earlier moment for the same port is replaced.
    pub(crate) fn insert(&mut self, key: PortKey, until: Duration) {
        self.remove(key);
        self.until.insert(key, until);
        self.order.insert((until, key));
    }

    /// Takes a port out, whether its rest is over or not; false where it was not resting.
    pub(crate) fn remove(&mut self, key: PortKey) -> bool {
        match self.until.remove(&key) {
            Some(until) => self.order.remove(&(until, key)),
            None => false,
        }
    }

    /// The ports whose rest is over; they stay until removed.
    pub(crate) fn due(&self, now: Duration) -> impl Iterator<Item = PortKey> + '_ {
        self.order
            .iter()
            .take_while(move |(until, _)| *until <= now)
            .map(|(_, key)| *key)
    }

    /// When the next rest ends.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.order.first().map(|(until, _)| *until)
    }

    /// Whether the port is resting.
    pub(crate) fn contains(&self, key: PortKey) -> bool {
        self.until.contains_key(&key)
    }

    /// How many ports rest.
    pub(crate) fn len(&self) -> usize {
        self.until.len()
    }

    /// Every resting port.
    pub(crate) fn keys(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.until.keys().copied()
    }
}
