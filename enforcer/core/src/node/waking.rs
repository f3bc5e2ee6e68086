//! Pods to look at again at a later time.

use std::time::Duration;

use portmapping_shared::PodUid;

use super::NodeState;

impl NodeState {
    /// Pods whose time has come are looked at.
    pub(super) fn wake(&mut self, now: Duration) {
        while let Some((at, _)) = self.wakes.first()
            && *at <= now
        {
            let Some((_, uid)) = self.wakes.pop_first() else {
                return;
            };
            if let Some(pod) = self.pods.get_mut(&uid) {
                pod.wake = None;
            }
            self.dirty.insert(uid);
        }
    }

    /// Notes when a pod is to be looked at again.
    pub(super) fn schedule(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let next = pod.next_wake();
        if pod.wake == next {
            return;
        }
        if let Some(old) = std::mem::replace(&mut pod.wake, next) {
            self.wakes.remove(&(old, uid.clone()));
        }
        if let Some(at) = next {
            self.wakes.insert((at, uid.clone()));
        }
    }
}
