//! Which entries contradict the rules after a change of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_shared::{Mapping, PortKey, Protocol};

use super::entry::Entry;

/// The mappings of one protocol and family that a transaction changed, by host port.
pub(super) struct ChangedMappings<'a> {
    removed: ByPort<'a>,
    created: ByPort<'a>,
    /// Ports that have no mapping.
    unmapped: BTreeSet<u16>,
}

type ByPort<'a> = BTreeMap<u16, Vec<&'a Mapping>>;

impl<'a> ChangedMappings<'a> {
    pub(super) fn new(
        protocol: Protocol,
        removed: &[&'a Mapping],
        created: &[&'a Mapping],
        unmapped: impl Iterator<Item = &'a PortKey>,
    ) -> Self {
        let by_port = |mappings: &[&'a Mapping]| {
            let mut by_port = ByPort::new();
            for mapping in mappings.iter().filter(|m| m.protocol == protocol) {
                by_port
                    .entry(mapping.host_port.get())
                    .or_default()
                    .push(*mapping);
            }
            by_port
        };
        Self {
            removed: by_port(removed),
            created: by_port(created),
            unmapped: unmapped.map(|(_, port)| port.get()).collect(),
        }
    }

    /// Returns the ports whose entries may be stale. A new mapping leaves TCP entries alone.
    pub(super) fn ports(&self, protocol: Protocol) -> BTreeSet<u16> {
        let created = self.created.keys().filter(|_| protocol != Protocol::Tcp);
        let ports = self.removed.keys().chain(created).chain(&self.unmapped);
        ports.copied().collect()
    }

    /// Returns whether an entry contradicts the rules. Flows to other addresses than host addresses,
    /// such as those of a Service, are not ours.
    pub(super) fn contradicts(
        &self,
        entry: &Entry,
        current: &BTreeSet<IpAddr>,
        ever: &BTreeSet<IpAddr>,
    ) -> bool {
        ever.contains(&entry.dst) && self.outlived_by(entry)
            || current.contains(&entry.dst) && self.bypassed_by(entry)
    }

    /// Returns whether an entry sends packets to a pod that lost the port and did not get it again.
    fn outlived_by(&self, entry: &Entry) -> bool {
        let is_lost = at(&self.removed, entry).any(|mapping| entry.leads_to(mapping))
            || self.unmapped.contains(&entry.port) && entry.is_translated();
        is_lost
            && !at(&self.created, entry).any(|mapping| entry.leads_to(mapping))
            && !(entry.protocol == Protocol::Tcp && entry.is_established)
    }

    /// Returns whether an entry sends packets to another endpoint than the pod that has the port
    /// now. Flows that the node forwards to the same port of another host look the same.
    fn bypassed_by(&self, entry: &Entry) -> bool {
        let concerns = |mapping: &Mapping| mapping.host_ip.is_none_or(|ip| ip == entry.dst);
        entry.protocol != Protocol::Tcp
            && at(&self.created, entry).any(concerns)
            && !at(&self.created, entry).any(|mapping| entry.leads_to(mapping))
    }
}

/// Returns the mappings of the port that an entry was sent to.
fn at<'a>(mappings: &ByPort<'a>, entry: &Entry) -> impl Iterator<Item = &'a Mapping> {
    mappings.get(&entry.port).into_iter().flatten().copied()
}
