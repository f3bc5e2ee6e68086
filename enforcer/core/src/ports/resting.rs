//! Whose ports rest. A user may not have the whole range at rest, and may not make and delete pods
//! until one gets a certain port.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_shared::{PodRef, PortKey, Protocol};

use super::ledger::PortState;

/// Namespace and name of a pod: they stay when the pod is created again.
type PodName = (String, String);

static NONE: BTreeSet<PortKey> = BTreeSet::new();

/// The pod that each resting port belonged to.
#[derive(Clone, Debug, Default)]
pub(super) struct RestingPorts {
    owners: BTreeMap<PortKey, PodName>,
    of_pods: BTreeMap<PodName, BTreeSet<PortKey>>,
    of_namespaces: BTreeMap<(String, Protocol), BTreeSet<PortKey>>,
}

impl RestingPorts {
    /// Records that a port of the pod rests.
    pub(super) fn record(&mut self, key: PortKey, pod: &PodRef) {
        self.forget(key);
        let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
        let of_namespace = (namespace.clone(), key.0);
        self.of_namespaces
            .entry(of_namespace)
            .or_default()
            .insert(key);
        let name = (namespace, name);
        self.of_pods.entry(name.clone()).or_default().insert(key);
        self.owners.insert(key, name);
    }

    /// Records that the port does not rest any more.
    pub(super) fn forget(&mut self, key: PortKey) {
        let Some(name) = self.owners.remove(&key) else {
            return;
        };
        remove(&mut self.of_namespaces, &(name.0.clone(), key.0), key);
        remove(&mut self.of_pods, &name, key);
    }

    /// The resting ports of pods of this name.
    pub(super) fn of_pod(&self, pod: &PodRef) -> &BTreeSet<PortKey> {
        let name = (pod.namespace.clone(), pod.name.clone());
        self.of_pods.get(&name).unwrap_or(&NONE)
    }

    /// The resting ports of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str, protocol: Protocol) -> &BTreeSet<PortKey> {
        let of = (namespace.to_owned(), protocol);
        self.of_namespaces.get(&of).unwrap_or(&NONE)
    }

    /// Every port whose pod is known.
    pub(super) fn ports(&self) -> impl Iterator<Item = PortKey> + '_ {
        self.owners.keys().copied()
    }
}

fn remove<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<PortKey>>, of: &K, key: PortKey) {
    if let Some(set) = sets.get_mut(of) {
        set.remove(&key);
        if set.is_empty() {
            sets.remove(of);
        }
    }
}

impl PortState {
    /// On its way from one pod to the next.
    pub(super) fn is_resting(&self) -> bool {
        use PortState::{Cooling, Draining, Releasing};
        matches!(self, Draining { .. } | Cooling { .. } | Releasing { .. })
    }

    /// For how long it still rests at least.
    pub(super) fn rest_left(&self, now: Duration) -> Duration {
        match self {
            Self::Draining { rest, .. } => *rest,
            Self::Cooling { until, .. } => until.saturating_sub(now),
            _ => Duration::ZERO,
        }
    }

    pub(super) fn is_reclaimable(&self) -> bool {
        use PortState::{Cooling, Draining};
        matches!(self, Draining { early, .. } | Cooling { early, .. } if !early)
    }
}
