//! Who had a resting port: a pod made again under the same name gets it back.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::{ContainerPort, PodRef, Protocol};

use crate::ports::PortKey;

/// What a port was to a pod: a replica of a `StatefulSet` keeps its name, never its uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    namespace: String,
    name: String,
    protocol: Protocol,
    container_port: ContainerPort,
}

/// The former use of resting ports. As many entries as ports rest, at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct PreviousPorts {
    by_port: BTreeMap<PortKey, Slot>,
    by_slot: BTreeMap<Slot, PortKey>,
    /// Ports that were found held and with no rule to say whose they are.
    unknown: BTreeSet<PortKey>,
}

impl PreviousPorts {
    /// The pod lets go of the port; of two ports it had for one use the later counts.
    pub(crate) fn remember(&mut self, key: PortKey, pod: &PodRef, container_port: ContainerPort) {
        self.forget(key);
        let slot = slot(pod, key.0, container_port);
        if let Some(older) = self.by_slot.insert(slot.clone(), key) {
            self.by_port.remove(&older);
        }
        self.by_port.insert(key, slot);
    }

    /// The port was somebody's, and only a pod's own result can say whose.
    pub(crate) fn lose_track(&mut self, key: PortKey) {
        self.forget(key);
        self.unknown.insert(key);
    }

    /// Whether it is not known whose the port was.
    pub(crate) fn is_unknown(&self, key: PortKey) -> bool {
        self.unknown.contains(&key)
    }

    /// The port rests no more.
    pub(crate) fn forget(&mut self, key: PortKey) {
        self.unknown.remove(&key);
        if let Some(slot) = self.by_port.remove(&key) {
            self.by_slot.remove(&slot);
        }
    }

    /// The resting port that a pod of this name had for this use.
    pub(crate) fn find(
        &self,
        pod: &PodRef,
        protocol: Protocol,
        container_port: ContainerPort,
    ) -> Option<PortKey> {
        self.by_slot
            .get(&slot(pod, protocol, container_port))
            .copied()
    }

    /// Ports with a former use, known or not.
    pub(crate) fn ports(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.by_port.keys().chain(&self.unknown).copied()
    }
}

fn slot(pod: &PodRef, protocol: Protocol, container_port: ContainerPort) -> Slot {
    Slot {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        protocol,
        container_port,
    }
}
