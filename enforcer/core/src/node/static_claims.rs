//! Static host ports of pods that run: they take their numbers from mapped pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_shared::PortKey;

use super::{EventKind, NodeState, PodFacts, PodUid};
use crate::ports::{StaticPort, static_ports};

impl PodFacts {
    /// The host ports that the pod's spec claims on the node. A pod that never runs, because an image
    /// or a volume is missing, needs none. `sandbox`: the runtime has a sandbox of the pod.
    fn static_ports(&self, sandbox: bool) -> BTreeSet<StaticPort> {
        let runs = if self.spec.host_network {
            self.started
        } else {
            sandbox || !self.pod_ips.is_empty()
        };
        if self.finished || !runs {
            return BTreeSet::new();
        }
        static_ports(&self.spec)
    }
}

impl NodeState {
    /// The static host ports that count for the pod, and those beyond the limits for one pod and for
    /// one namespace. Without a limit one user could unmap all other pods of the node.
    pub(super) fn claims_of(&self, uid: &PodUid) -> (BTreeSet<StaticPort>, BTreeSet<StaticPort>) {
        let sandbox = self.addresses.newest(uid).is_some();
        let facts = self.facts(uid);
        let mut all = facts.map_or_else(BTreeSet::new, |facts| facts.static_ports(sandbox));
        if all.is_empty() {
            return (all, BTreeSet::new());
        }
        let others = facts.map_or(0, |facts| self.claimed_next_to(facts));
        let left = self.config.namespace_limit().saturating_sub(others);
        let beyond = all.iter().nth(left.min(self.config.max_ports)).copied();
        let beyond = beyond.map_or_else(BTreeSet::new, |first| all.split_off(&first));
        (all, beyond)
    }

    /// How many static host ports the other pods of the namespace have.
    fn claimed_next_to(&self, facts: &PodFacts) -> usize {
        let others = self.pods.iter().filter(|(uid, _)| **uid != facts.pod.uid);
        let others = others.filter(|(_, pod)| pod.is_in(&facts.pod.namespace));
        others.map(|(_, pod)| pod.static_ports.len()).sum()
    }

    /// The static host ports of the range that no pod has at another address; None before all pods have been
    /// shown.
    #[must_use]
    pub fn static_ports(&self) -> Option<BTreeSet<PortKey>> {
        let ports = self.pods.values().flat_map(|pod| &pod.static_ports);
        let in_range = ports.filter(|port| self.config.range.contains(port.key.1));
        let keys = in_range.map(|port| port.key);
        let never_mapped = keys.filter(|key| self.ports.owner(*key).is_none());
        self.listed.then(|| never_mapped.collect())
    }

    /// Updates which host ports the pod has statically.
    pub(super) fn update_static_ports(&mut self, now: Duration, uid: &PodUid) {
        let released = self.update_claims(now, uid);
        let namespace = self.facts(uid).map(|facts| facts.pod.namespace.clone());
        if let Some(namespace) = namespace.filter(|_| released) {
            self.update_static_ports_in(now, &namespace);
        }
    }

    /// A pod of the namespace has fewer static host ports: those of another may count now.
    pub(super) fn update_static_ports_in(&mut self, now: Duration, namespace: &str) {
        let pods = self.pods.iter().filter(|(_, pod)| pod.is_in(namespace));
        let pods: BTreeMap<u64, PodUid> = pods.map(|(uid, pod)| (pod.seq, uid.clone())).collect();
        for uid in pods.values() {
            self.update_claims(now, uid);
        }
    }

    /// Updates the claims of one pod. Returns whether it gave some up. A pod that leases one of the
    /// ports gets another port: our rules would win, and the claiming pod would lose traffic that its
    /// spec promises. Both pods get an event.
    fn update_claims(&mut self, now: Duration, uid: &PodUid) -> bool {
        let (after, beyond) = self.claims_of(uid);
        let Some(pod) = self.pods.get_mut(uid) else {
            return false;
        };
        let before = std::mem::replace(&mut pod.static_ports, after.clone());
        for port in before.difference(&after) {
            if after.iter().all(|other| other.key != port.key) {
                self.ports.unclaim(uid, port.key);
            }
        }
        for port in after.difference(&before) {
            self.ports.claim(now, uid, port.key);
            if let Some(owner) = self.in_conflict(*port) {
                let ruled = self.kernel.is_ruled(port.key);
                self.ports.end_lease_early(now, port.key, ruled);
                self.emit_conflict(&owner, uid, port.key);
            }
        }
        let refused = beyond
            .iter()
            .find_map(|port| Some((port.key, self.in_conflict(*port)?)));
        let told = self.pods.get_mut(uid).and_then(|pod| {
            std::mem::replace(
                &mut pod.refused_static,
                refused.as_ref().map(|(key, _)| *key),
            )
        });
        if let Some((key, owner)) =
            refused.filter(|(key, _)| before.is_empty() && told != Some(*key))
        {
            self.emit_kept(&owner, uid, key);
        }
        before.len() > after.len()
    }

    /// The pod that leases a number where a static port must answer.
    fn in_conflict(&self, port: StaticPort) -> Option<PodUid> {
        let owner = self.ports.owner(port.key);
        let owner = owner.filter(|(_, lease)| port.conflicts_with(lease));
        owner.map(|(owner, _)| owner.clone())
    }

    fn name_of(&self, uid: &PodUid) -> String {
        match self.facts(uid) {
            Some(facts) => facts.pod.to_string(),
            None => format!("with uid {uid}"),
        }
    }

    fn emit_conflict(&mut self, owner: &PodUid, claimant: &PodUid, key: PortKey) {
        let (owner_name, claimant_name) = (self.name_of(owner), self.name_of(claimant));
        let (protocol, number) = key;
        if owner != claimant {
            let note = format!(
                "host port {number}/{protocol} is a static hostPort of pod {claimant_name}, which \
                 keeps it: this pod gets another one"
            );
            self.emit(owner, EventKind::PortConflict, note);
        }
        let note = format!(
            "hostPort {number}/{protocol} of this pod was mapped to pod {owner_name} until now; \
             that pod gets another one: use static hostPorts outside the range {} to prevent this",
            self.config.range,
        );
        self.emit(claimant, EventKind::PortConflict, note);
    }

    fn emit_kept(&mut self, owner: &PodUid, claimant: &PodUid, key: PortKey) {
        let owner = self.name_of(owner);
        let (protocol, number) = key;
        let note = format!(
            "hostPort {number}/{protocol} of this pod stays mapped to pod {owner}: of one pod only \
             {} static hostPorts (--max-ports), and of one namespace only {} (--namespace-share), \
             take their numbers from mapped pods; use static hostPorts outside the range {} to \
             prevent this",
            self.config.max_ports,
            self.config.namespace_limit(),
            self.config.range,
        );
        self.emit(claimant, EventKind::PortConflict, note);
    }
}
