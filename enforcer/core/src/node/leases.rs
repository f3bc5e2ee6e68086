//! Who has which port, and how each of them stands with the keeper.

use std::time::Duration;

use portmapping_shared::{LeasedPort, PodUid};

use super::NodeState;
use crate::allocator::PortKey;
use crate::pod::{self, Hold};

impl NodeState {
    /// Finds the pod that leases a port.
    pub(super) fn lessee(&self, key: PortKey) -> Option<(&PodUid, LeasedPort)> {
        let uid = self.lessees.get(&key)?;
        let lease = self
            .tenants
            .get(uid)?
            .lease
            .keys()
            .find(|lease| pod::key(lease) == key);
        lease.map(|lease| (uid, *lease))
    }

    /// How a leased port stands with the keeper; None where nobody leases it.
    pub(super) fn hold_of(&self, key: PortKey) -> Option<Hold> {
        let (uid, lease) = self.lessee(key)?;
        self.tenants.get(uid)?.lease.get(&lease).copied()
    }

    /// Notes how a leased port stands with the keeper.
    pub(super) fn set_hold(&mut self, key: PortKey, hold: Hold) {
        let Some((uid, lease)) = self.lessee(key).map(|(uid, lease)| (uid.clone(), lease)) else {
            return;
        };
        self.missing.remove(&key);
        self.lost.remove(&key);
        match hold {
            Hold::Missing => self.missing.insert(key),
            Hold::Lost => self.lost.insert(key),
            Hold::Asked | Hold::Held => false,
        };
        if let Some(tenant) = self.tenants.get_mut(&uid) {
            tenant.lease.insert(lease, hold);
        }
        self.dirty.insert(uid);
    }

    /// The pod has the port from now on.
    pub(super) fn begin_lease(&mut self, uid: &PodUid, lease: LeasedPort, hold: Hold) {
        if let Some(tenant) = self.tenants.get_mut(uid) {
            tenant.lease.insert(lease, hold);
            self.lessees.insert(pod::key(&lease), uid.clone());
            self.set_hold(pod::key(&lease), hold);
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
        let key = pod::key(lease);
        self.drop_lease(uid, lease);
        let tenant = self.tenants.get(uid);
        if let Some(facts) = tenant.and_then(|tenant| tenant.facts.as_ref()) {
            self.former.remember(key, &facts.pod, lease.container_port);
        }
        self.rest(now, key, rest);
    }

    pub(super) fn drop_lease(&mut self, uid: &PodUid, lease: &LeasedPort) {
        let key = pod::key(lease);
        if let Some(tenant) = self.tenants.get_mut(uid) {
            tenant.lease.remove(lease);
            tenant
                .recovered
                .retain(|m| (m.protocol, m.host_port) != key);
        }
        self.lessees.remove(&key);
        self.missing.remove(&key);
        self.lost.remove(&key);
        self.dirty.insert(uid.clone());
        // until the API speaks, its rules are where a pod is
        self.readdress(uid);
    }
}
