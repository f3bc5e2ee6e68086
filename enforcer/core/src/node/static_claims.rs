//! Static host ports of pods that run: they take their numbers from mapped pods.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{EventKind, NodeState, PodUid, PortKey};
use crate::ports::StaticPort;

impl NodeState {
    /// The static host ports that count for the pod, and those beyond the limit for one pod. Without
    /// a limit one pod could unmap all others of the node.
    pub(super) fn claims_of(&self, uid: &PodUid) -> (BTreeSet<StaticPort>, BTreeSet<StaticPort>) {
        let sandbox = self.addresses.newest(uid).is_some();
        let facts = self.facts(uid);
        let mut all = facts.map_or_else(BTreeSet::new, |facts| facts.static_ports(sandbox));
        let beyond = all.iter().nth(self.config.max_ports).copied();
        let beyond = beyond.map_or_else(BTreeSet::new, |first| all.split_off(&first));
        (all, beyond)
    }

    /// Updates which host ports the pod has statically. A pod that leases one of them gets another
    /// port: our rules would win, and the claiming pod would lose traffic that its spec promises.
    /// Both pods get an event.
    pub(super) fn update_static_ports(&mut self, now: Duration, uid: &PodUid) {
        let (after, beyond) = self.claims_of(uid);
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
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
        if let Some((key, owner)) = refused.filter(|_| before.is_empty()) {
            self.emit_kept(&owner, uid, key);
        }
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
             {} static hostPorts (--max-ports) take their numbers from mapped pods; use static \
             hostPorts outside the range {} to prevent this",
            self.config.max_ports, self.config.range,
        );
        self.emit(claimant, EventKind::PortConflict, note);
    }
}
