//! Which host ports are free, and the random pick among them.
//!
//! Picking costs the same at one free port as at all: the free ports of a protocol lie densely in
//! one vector, and a second array says where each of them lies.

use std::collections::BTreeMap;

use portmapping_shared::{HostPort, PortRange, PortSet, Protocol};
use rand::{Rng, RngExt};

/// A host port of one protocol: what a pod is granted, what the keeper holds.
pub type PortKey = (Protocol, HostPort);

/// The range has fewer free ports than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{free} {protocol} ports are free, {asked} are needed")]
pub struct Exhausted {
    /// Protocol that ran out.
    pub protocol: Protocol,
    /// Ports asked for.
    pub asked: usize,
    /// Ports free.
    pub free: usize,
}

/// The free ports of the range, per protocol.
#[derive(Clone, Debug)]
pub struct PortPool {
    range: PortRange,
    /// Never given, whatever the protocol: configured, reserved in the kernel, node ports.
    excluded: PortSet,
    /// Static host ports of the node's pods, counted: several pods may declare the same.
    occupied: BTreeMap<PortKey, usize>,
    /// Leased, cooling or in quarantine.
    taken: BTreeMap<Protocol, PortSet>,
    free: BTreeMap<Protocol, FreeList>,
}

impl PortPool {
    /// A pool with every port of the range free but the excluded ones.
    #[must_use]
    pub fn new(range: PortRange, excluded: PortSet) -> Self {
        let usable: Vec<_> = range
            .ports()
            .filter(|port| !excluded.contains(*port))
            .collect();
        let lists = Protocol::ALL.map(|protocol| (protocol, FreeList::new(range, &usable)));
        let taken = Protocol::ALL.map(|protocol| (protocol, PortSet::default()));
        Self {
            range,
            excluded,
            occupied: BTreeMap::new(),
            taken: taken.into(),
            free: lists.into(),
        }
    }

    /// The range ports come from.
    #[must_use]
    pub fn range(&self) -> PortRange {
        self.range
    }

    /// How many ports of the range are excluded for every protocol.
    #[must_use]
    pub fn excluded(&self) -> usize {
        self.range
            .ports()
            .filter(|port| self.excluded.contains(*port))
            .count()
    }

    /// How many ports are free.
    #[must_use]
    pub fn free(&self, protocol: Protocol) -> usize {
        self.free.get(&protocol).map_or(0, FreeList::len)
    }

    /// Takes a free port, uniformly at random; None where there is none.
    pub fn pick(&mut self, protocol: Protocol, rng: &mut impl Rng) -> Option<HostPort> {
        let list = self.free.get_mut(&protocol)?;
        if list.len() == 0 {
            return None;
        }
        let port = list.ports[rng.random_range(0..list.len())];
        list.remove(port);
        self.mark((protocol, port));
        Some(port)
    }

    /// Takes this very port if it is free.
    pub fn take(&mut self, key: PortKey) -> bool {
        let free = self
            .free
            .get_mut(&key.0)
            .is_some_and(|list| list.remove(key.1));
        if free {
            self.mark(key);
        }
        free
    }

    /// Takes a port that the kernel says is in use, free or not: of an earlier range, say.
    pub fn seize(&mut self, key: PortKey) {
        if let Some(list) = self.free.get_mut(&key.0) {
            list.remove(key.1);
        }
        self.mark(key);
    }

    /// Gives a taken port back; whether it is free now.
    pub fn give_back(&mut self, key: PortKey) -> bool {
        let taken = self.taken.get_mut(&key.0);
        taken.is_some_and(|set| set.remove(key.1)) && self.settle(key)
    }

    /// Whether anyone may have the port.
    #[must_use]
    pub fn is_free(&self, key: PortKey) -> bool {
        self.free
            .get(&key.0)
            .is_some_and(|list| list.contains(key.1))
    }

    /// Whether the port is one to give, once nobody has it: of the range, not excluded, not static.
    #[must_use]
    pub fn is_grantable(&self, key: PortKey) -> bool {
        let usable = self.range.contains(key.1) && !self.excluded.contains(key.1);
        usable && !self.occupied.contains_key(&key)
    }

    /// Whether nobody has the port of those we know of.
    #[must_use]
    pub fn is_idle(&self, key: PortKey) -> bool {
        let taken = self.taken.get(&key.0);
        !taken.is_some_and(|set| set.contains(key.1))
    }

    /// A pod of the node declares this static host port.
    pub fn occupy(&mut self, key: PortKey) {
        *self.occupied.entry(key).or_default() += 1;
        if let Some(list) = self.free.get_mut(&key.0) {
            list.remove(key.1);
        }
    }

    /// The pod that declared it is gone; whether the port is free now.
    pub fn vacate(&mut self, key: PortKey) -> bool {
        let Some(count) = self.occupied.get_mut(&key) else {
            return false;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.occupied.remove(&key);
        self.settle(key)
    }

    fn mark(&mut self, (protocol, port): PortKey) {
        if let Some(set) = self.taken.get_mut(&protocol) {
            set.insert(port);
        }
    }

    /// Makes a port free if nothing speaks against it.
    fn settle(&mut self, key: PortKey) -> bool {
        let usable = self.is_grantable(key) && self.is_idle(key);
        if usable && let Some(list) = self.free.get_mut(&key.0) {
            list.insert(key.1);
        }
        usable
    }
}

/// A set of ports with a random pick in constant time.
#[derive(Clone, Debug)]
struct FreeList {
    first: u16,
    ports: Vec<HostPort>,
    /// Where each port of the range lies in `ports`.
    at: Vec<Option<u16>>,
}

impl FreeList {
    fn new(range: PortRange, usable: &[HostPort]) -> Self {
        let mut list = Self {
            first: range.first().get(),
            ports: Vec::new(),
            at: vec![None; range.size()],
        };
        for port in usable {
            list.insert(*port);
        }
        list
    }

    fn len(&self) -> usize {
        self.ports.len()
    }

    fn contains(&self, port: HostPort) -> bool {
        let slot = port.get().checked_sub(self.first);
        let slot = slot.and_then(|slot| self.at.get(usize::from(slot)));
        slot.is_some_and(Option::is_some)
    }

    fn slot(&mut self, port: HostPort) -> Option<&mut Option<u16>> {
        self.at
            .get_mut(usize::from(port.get().checked_sub(self.first)?))
    }

    fn insert(&mut self, port: HostPort) {
        let Ok(end) = u16::try_from(self.ports.len()) else {
            return;
        };
        if let Some(slot @ None) = self.slot(port) {
            *slot = Some(end);
            self.ports.push(port);
        }
    }

    /// Moves the last port into the gap; false where the port was not free.
    fn remove(&mut self, port: HostPort) -> bool {
        let Some(at) = self.slot(port).and_then(Option::take) else {
            return false;
        };
        self.ports.swap_remove(usize::from(at));
        if let Some(moved) = self.ports.get(usize::from(at)).copied()
            && let Some(slot) = self.slot(moved)
        {
            *slot = Some(at);
        }
        true
    }
}

#[cfg(test)]
mod tests;
