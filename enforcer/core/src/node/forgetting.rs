//! What remains of a pod that is gone: ports that rest, and rules to take away.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::{LeasedPort, PodUid};

use super::NodeState;
use crate::pods::state::PodFacts;

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
        self.set_static_ports(now, uid, &BTreeSet::new());
        let leases: Vec<LeasedPort> = self
            .pods
            .get(uid)
            .into_iter()
            .flat_map(|pod| pod.lease.keys().copied())
            .collect();
        for lease in leases {
            self.end_lease(now, uid, &lease, self.config.cooldown);
        }
        self.addresses.forget(uid);
        if let Some(pod) = self.pods.remove(uid) {
            self.waiting.remove(&(pod.seq, uid.clone()));
            if let Some(at) = pod.wake {
                self.wakes.remove(&(at, uid.clone()));
            }
            if let Some(facts) = pod.facts {
                let name = (facts.pod.namespace, facts.pod.name);
                if self.names.get(&name) == Some(uid) {
                    self.names.remove(&name);
                }
            }
        }
        self.dirty.insert(uid.clone());
        self.update_addresses(uid);
    }
}
