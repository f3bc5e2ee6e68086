//! What remains of a pod that is gone: ports that rest, and rules to take away.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::{LeasedPort, PodUid};

use super::NodeState;
use crate::pod::PodFacts;

impl NodeState {
    /// Names are unique in the API: whoever had this one is gone, said or not.
    pub(super) fn take_name(&mut self, now: Duration, facts: &PodFacts) {
        let PodFacts { pod, .. } = facts;
        let name = (pod.namespace.clone(), pod.name.clone());
        let before = self.names.insert(name, pod.uid.clone());
        if let Some(before) = before.filter(|before| *before != pod.uid) {
            self.forget(now, &before);
        }
    }

    /// The pod is gone: its ports rest, and its rules are wanted no more.
    pub(super) fn forget(&mut self, now: Duration, uid: &PodUid) {
        self.note_static_ports(now, uid, &BTreeSet::new());
        let leases: Vec<LeasedPort> = self
            .tenants
            .get(uid)
            .into_iter()
            .flat_map(|tenant| tenant.lease.keys().copied())
            .collect();
        for lease in leases {
            self.end_lease(now, uid, &lease, self.config.cooldown);
        }
        self.addresses.forget(uid);
        if let Some(tenant) = self.tenants.remove(uid) {
            self.waiting.remove(&(tenant.seq, uid.clone()));
            if let Some(at) = tenant.wake {
                self.wakes.remove(&(at, uid.clone()));
            }
            if let Some(facts) = tenant.facts {
                let name = (facts.pod.namespace, facts.pod.name);
                if self.names.get(&name) == Some(uid) {
                    self.names.remove(&name);
                }
            }
        }
        self.dirty.insert(uid.clone());
        self.readdress(uid);
    }
}
