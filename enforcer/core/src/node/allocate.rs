//! Which of the pods that wait gets which ports.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::PortKey;

use super::{Duration, EventKind, NodeState, PodUid, Refusal};
use crate::ports::{Exhausted, WaitingPod, WantedPort};

impl NodeState {
    /// Gives ports to every pod that lacks some, the oldest first: to marked pods, and to all of
    /// them when ports came free.
    ///
    /// The ports that pods had are matched before any is drawn, so that no other pod draws them. Until
    /// the first complete list a pod that is not shown yet may have had any port: none is drawn, and a
    /// pod gets its previous ports where its condition confirms them.
    pub(super) fn allocate_waiting(&mut self, now: Duration) {
        let mut waiting = self.waiting();
        let matched = self.match_previous(&mut waiting);
        if !self.listed {
            let confirmed = |port: &WantedPort| port.confirmed && port.matched.is_some();
            waiting.retain(|pod| pod.wanted.iter().all(confirmed));
        }
        waiting.retain(|pod| self.allocate(now, pod, &matched).is_err());
        if !self.listed {
            return;
        }
        for pod in waiting {
            // a previous port that its pod could not get is free for the others
            if let Err(exhausted) = self.allocate(now, &pod, &BTreeSet::new()) {
                self.refuse_for_ports(&pod.pod.uid, &exhausted);
            }
        }
    }

    fn waiting(&mut self) -> Vec<WaitingPod> {
        let mut uids = self.agenda.marked().clone();
        if self.ports.take_freed() {
            uids.extend(self.pods.keys().cloned());
        }
        uids.retain(|uid| {
            let pod = self.pods.get(uid);
            pod.is_some_and(|pod| pod.lacks_ports(self.ports.leases(uid)))
        });
        let waiting: BTreeMap<u64, WaitingPod> = uids
            .iter()
            .filter_map(|uid| {
                let pod = self.pods.get(uid)?;
                let waiting = WaitingPod {
                    pod: pod.facts.as_ref()?.pod.clone(),
                    requested: pod.requested(),
                    wanted: pod.wanted_ports(self.ports.leases(uid)),
                };
                Some((pod.seq, waiting))
            })
            .collect();
        waiting.into_values().collect()
    }

    /// Finds for each port the one that it was before. Returns all of these. What a condition confirms
    /// comes first, because another pod may name the port too.
    fn match_previous(&self, waiting: &mut [WaitingPod]) -> BTreeSet<PortKey> {
        let mut matched = BTreeSet::new();
        for confirmed in [true, false] {
            for WaitingPod { pod, wanted, .. } in &mut *waiting {
                for port in wanted.iter_mut().filter(|port| port.confirmed == confirmed) {
                    let previous = self.ports.previous(pod, port);
                    port.matched = previous.filter(|key| matched.insert(*key));
                }
            }
        }
        for pod in waiting {
            for at in 0..pod.wanted.len() {
                let WantedPort {
                    port,
                    matched: None,
                    ..
                } = &pod.wanted[at]
                else {
                    continue;
                };
                let own = self.ports.own_resting(pod, port.protocol, &matched);
                matched.extend(own);
                pod.wanted[at].matched = own;
            }
        }
        matched
    }

    /// Gives the pod all ports that it lacks, or none.
    fn allocate(
        &mut self,
        now: Duration,
        waiting: &WaitingPod,
        matched: &BTreeSet<PortKey>,
    ) -> Result<(), Exhausted> {
        let uid = &waiting.pod.uid;
        self.agenda.mark(uid.clone());
        self.ports.allocate(now, waiting, matched, &mut self.rng)?;
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.clear_refusal(EventKind::NoFreePort);
            pod.confirmed_by = None;
        }
        Ok(())
    }

    fn refuse_for_ports(&mut self, uid: &PodUid, exhausted: &Exhausted) {
        let kind = EventKind::NoFreePort;
        let pod = self.pods.get_mut(uid);
        // the numbers of the first refusal stay: a new text would be one more API write
        if let Some(pod) = pod.filter(|pod| !pod.is_refused(kind)) {
            let message = exhausted.to_string();
            pod.refusal = Some(Refusal { kind, message });
        }
    }
}
