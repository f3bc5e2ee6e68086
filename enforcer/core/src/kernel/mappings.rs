//! A set of mappings that can be searched by pod and by port.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::{Mapping, PodUid, PortKey};

static NONE: BTreeSet<Mapping> = BTreeSet::new();

/// Mappings by the pod that owns them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MappingTable {
    by_owner: BTreeMap<PodUid, BTreeSet<Mapping>>,
    /// How many mappings each port has: one per address family.
    ports: BTreeMap<PortKey, usize>,
    len: usize,
    /// How many of them are of IPv6.
    ipv6: usize,
}

impl MappingTable {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn ipv6(&self) -> usize {
        self.ipv6
    }

    pub(crate) fn insert(&mut self, mapping: Mapping) {
        let key = port_of(&mapping);
        let ipv6 = mapping.pod_ip.is_ipv6();
        let owner = self.by_owner.entry(mapping.owner.clone()).or_default();
        if owner.insert(mapping) {
            *self.ports.entry(key).or_default() += 1;
            self.len += 1;
            self.ipv6 += usize::from(ipv6);
        }
    }

    pub(crate) fn remove(&mut self, mapping: &Mapping) {
        let Some(owner) = self.by_owner.get_mut(&mapping.owner) else {
            return;
        };
        if owner.remove(mapping) {
            if owner.is_empty() {
                self.by_owner.remove(&mapping.owner);
            }
            let key = port_of(mapping);
            if let Some(count) = self.ports.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(&key);
                }
            }
            self.len -= 1;
            self.ipv6 -= usize::from(mapping.pod_ip.is_ipv6());
        }
    }

    /// Makes these the pod's only mappings.
    pub(crate) fn replace(&mut self, owner: &PodUid, mappings: BTreeSet<Mapping>) {
        if *self.of(owner) == mappings {
            return;
        }
        for old in self.by_owner.get(owner).cloned().unwrap_or_default() {
            self.remove(&old);
        }
        for mapping in mappings {
            self.insert(mapping);
        }
    }

    /// The pod's mappings.
    pub(crate) fn of(&self, owner: &PodUid) -> &BTreeSet<Mapping> {
        self.by_owner.get(owner).unwrap_or(&NONE)
    }

    /// Whether any mapping uses the port.
    pub(crate) fn uses(&self, key: PortKey) -> bool {
        self.ports.contains_key(&key)
    }

    pub(crate) fn owners(&self) -> impl Iterator<Item = &PodUid> {
        self.by_owner.keys()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.by_owner.values().flatten()
    }
}

impl FromIterator<Mapping> for MappingTable {
    fn from_iter<I: IntoIterator<Item = Mapping>>(mappings: I) -> Self {
        let mut table = Self::default();
        for mapping in mappings {
            table.insert(mapping);
        }
        table
    }
}

/// The port a mapping translates.
pub(crate) fn port_of(mapping: &Mapping) -> PortKey {
    (mapping.protocol, mapping.host_port)
}

#[cfg(test)]
mod tests;
