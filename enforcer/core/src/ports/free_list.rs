//! The free ports of the range, with a random pick in constant time.
//!
//! The free ports of a protocol stand without gaps in one vector, and a second vector has the
//! position of each. So a pick costs the same whether one port is free or all of them.

use std::collections::BTreeSet;

use portmapping_shared::{HostPort, PortKey, PortRange, Protocol};
use rand::{Rng, RngExt};

/// The free ports, for each protocol.
#[derive(Clone, Debug)]
pub(crate) struct FreeList {
    first: u16,
    ports: [Vec<HostPort>; Protocol::ALL.len()],
    /// The position in `ports` of each port of the range.
    positions: [Vec<Option<u16>>; Protocol::ALL.len()],
}

impl FreeList {
    /// An empty list with room for the ports of the range.
    pub(crate) fn new(range: PortRange) -> Self {
        Self {
            first: range.first().get(),
            ports: Protocol::ALL.map(|_| Vec::new()),
            positions: Protocol::ALL.map(|_| vec![None; range.size()]),
        }
    }

    pub(crate) fn len(&self, protocol: Protocol) -> usize {
        self.ports[protocol as usize].len()
    }

    /// A free port, each with the same probability; None where no port is free. A port in `kept` is
    /// replaced by the next one in the list.
    pub(crate) fn pick(
        &self,
        protocol: Protocol,
        kept: &BTreeSet<PortKey>,
        rng: &mut impl Rng,
    ) -> Option<HostPort> {
        let ports = &self.ports[protocol as usize];
        if ports.is_empty() {
            return None;
        }
        let (before, after) = ports.split_at(rng.random_range(0..ports.len()));
        let mut all = after.iter().chain(before);
        all.find(|port| !kept.contains(&(protocol, **port)))
            .copied()
    }

    pub(crate) fn contains(&self, (protocol, port): PortKey) -> bool {
        let offset = port.get().checked_sub(self.first).map(usize::from);
        let position = offset.and_then(|offset| self.positions[protocol as usize].get(offset));
        position.is_some_and(Option::is_some)
    }

    /// Adds a port; false where it is in the list or outside the range.
    pub(crate) fn insert(&mut self, key: PortKey) -> bool {
        let (protocol, port) = key;
        let Ok(end) = u16::try_from(self.len(protocol)) else {
            return false;
        };
        let Some(position @ None) = self.position(key) else {
            return false;
        };
        *position = Some(end);
        self.ports[protocol as usize].push(port);
        true
    }

    /// Removes a port; the last one of the list moves to its position.
    pub(crate) fn remove(&mut self, key: PortKey) {
        let (protocol, _) = key;
        let Some(at) = self.position(key).and_then(Option::take) else {
            return;
        };
        let ports = &mut self.ports[protocol as usize];
        ports.swap_remove(at.into());
        if let Some(moved) = ports.get(usize::from(at)).copied()
            && let Some(position) = self.position((protocol, moved))
        {
            *position = Some(at);
        }
    }

    fn position(&mut self, (protocol, port): PortKey) -> Option<&mut Option<u16>> {
        let offset = port.get().checked_sub(self.first)?;
        self.positions[protocol as usize].get_mut(usize::from(offset))
    }
}

#[cfg(test)]
mod tests;
