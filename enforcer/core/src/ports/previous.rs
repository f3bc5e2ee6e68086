//! Which pod had a resting port: a pod that is created again under the same name gets it back.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::{ContainerPort, PodRef, PortKey, Protocol};

/// What a port was to a pod: namespace, name, protocol, container port. A replica of a `StatefulSet`
/// keeps its name, but not its uid.
type Use = (String, String, Protocol, ContainerPort);

/// The previous use of each resting port.
#[derive(Clone, Debug, Default)]
pub(crate) struct PreviousPorts {
    by_port: BTreeMap<PortKey, Use>,
    by_use: BTreeMap<Use, PortKey>,
    /// Ports that were held at the start without a rule that names their pod.
    unknown: BTreeSet<PortKey>,
}

impl PreviousPorts {
    /// Records which pod had the port. Of two ports with the same use the later one counts.
    pub(crate) fn record(&mut self, key: PortKey, pod: &PodRef, container_port: ContainerPort) {
        self.forget(key);
        let of = use_of(pod, key.0, container_port);
        if let Some(older) = self.by_use.insert(of.clone(), key) {
            self.by_port.remove(&older);
        }
        self.by_port.insert(key, of);
    }

    /// Records that a pod had the port, and that only the pod's own result can say which pod.
    pub(crate) fn record_unknown(&mut self, key: PortKey) {
        self.forget(key);
        self.unknown.insert(key);
    }

    /// Whether a pod had the port and it is not known which.
    pub(crate) fn is_unknown(&self, key: PortKey) -> bool {
        self.unknown.contains(&key)
    }

    /// Removes the port: it does not rest, or a static claim needs it.
    pub(crate) fn forget(&mut self, key: PortKey) {
        self.unknown.remove(&key);
        if let Some(of) = self.by_port.remove(&key) {
            self.by_use.remove(&of);
        }
    }

    /// The resting port that a pod of this name had for this container port.
    pub(crate) fn find(
        &self,
        pod: &PodRef,
        protocol: Protocol,
        container_port: ContainerPort,
    ) -> Option<PortKey> {
        let of = use_of(pod, protocol, container_port);
        self.by_use.get(&of).copied()
    }

    /// Every port with a previous use, known or not.
    pub(crate) fn ports(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.by_port.keys().chain(&self.unknown).copied()
    }
}

fn use_of(pod: &PodRef, protocol: Protocol, container_port: ContainerPort) -> Use {
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    (namespace, name, protocol, container_port)
}
