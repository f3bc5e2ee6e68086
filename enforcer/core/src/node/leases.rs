//! Who has which port, and how each of them stands with the keeper.

use std::time::Duration;

use portmapping_shared::{LeasedPort, PodUid};

use super::NodeState;
use crate::pods::state::{self, Hold};
use crate::ports::PortKey;

impl NodeState {
    /// Finds the pod that leases a port.
    pub(super) fn owner(&self, key: PortKey) -> Option<(&PodUid, LeasedPort)> {
        let uid = self.owners.get(&key)?;
        let lease = self
            .pods
            .get(uid)?
            .lease
            .keys()
            .find(|lease| state::key(lease) == key);
        lease.map(|lease| (uid, *lease))
    }

    /// How a leased port stands with the keeper; None where nobody leases it.
    pub(super) fn hold_of(&self, key: PortKey) -> Option<Hold> {
        let (uid, lease) = self.owner(key)?;
        self.pods.get(uid)?.lease.get(&lease).copied()
    }

    /// Notes how a leased port stands with the keeper.
    pub(super) fn set_hold(&mut self, key: PortKey, hold: Hold) {
        let Some((uid, lease)) = self.owner(key).map(|(uid, lease)| (uid.clone(), lease)) else {
            return;
        };
        self.missing.remove(&key);
        self.lost.remove(&key);
        match hold {
            Hold::Missing => self.missing.insert(key),
            Hold::Lost => self.lost.insert(key),
            Hold::Asked | Hold::Held => false,
        };
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.lease.insert(lease, hold);
        }
        self.dirty.insert(uid);
    }

    /// The pod has the port from now on.
    pub(super) fn begin_lease(&mut self, uid: &PodUid, lease: LeasedPort, hold: Hold) {
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.lease.insert(lease, hold);
            self.owners.insert(state::key(&lease), uid.clone());
            self.set_hold(state::key(&lease), hold);
        }
    }

    /// The pod has the port no more: it rests, still held, so that stale clients meet a refusal
    /// and no newer pod.
    pub(super) fn end_lease(
        &mut self,
        now: Duration,
        uid: &PodUid,
        lease: &LeasedPort,
        rest: Duration,
    ) {
        let key = state::key(lease);
        self.drop_lease(uid, lease);
        let pod = self.pods.get(uid);
        if let Some(facts) = pod.and_then(|pod| pod.facts.as_ref()) {
            self.previous
                .remember(key, &facts.pod, lease.container_port);
        }
        self.rest(now, key, rest);
    }

    pub(super) fn drop_lease(&mut self, uid: &PodUid, lease: &LeasedPort) {
        let key = state::key(lease);
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.lease.remove(lease);
            pod.recovered.retain(|m| (m.protocol, m.host_port) != key);
        }
        self.owners.remove(&key);
        self.missing.remove(&key);
        self.lost.remove(&key);
        self.dirty.insert(uid.clone());
        // until the API speaks, its rules are where a pod is
        self.update_addresses(uid);
    }
}
