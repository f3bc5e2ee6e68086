//! Things that must rest until a moment: released ports cooling down, strangers' ports in
//! quarantine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::allocator::PortKey;

/// Ports with the moment each of them may be touched again.
#[derive(Clone, Debug, Default)]
pub struct Resting {
    until: BTreeMap<PortKey, Duration>,
    order: BTreeSet<(Duration, PortKey)>,
}

impl Resting {
    /// Puts a port to rest; an earlier moment for the same port is replaced.
    pub fn insert(&mut self, key: PortKey, until: Duration) {
        self.remove(key);
        self.until.insert(key, until);
        self.order.insert((until, key));
    }

    /// Takes a port out, whether its rest is over or not; false where it was not resting.
    pub fn remove(&mut self, key: PortKey) -> bool {
        match self.until.remove(&key) {
            Some(until) => self.order.remove(&(until, key)),
            None => false,
        }
    }

    /// The ports whose rest is over; they stay until removed.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = PortKey> + '_ {
        self.order
            .iter()
            .take_while(move |(until, _)| *until <= now)
            .map(|(_, key)| *key)
    }

    /// When the next rest ends.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        self.order.first().map(|(until, _)| *until)
    }

    /// Whether the port is resting.
    #[must_use]
    pub fn contains(&self, key: PortKey) -> bool {
        self.until.contains_key(&key)
    }

    /// How many ports rest.
    #[must_use]
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Whether no port rests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// Every resting port.
    pub fn keys(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.until.keys().copied()
    }
}
