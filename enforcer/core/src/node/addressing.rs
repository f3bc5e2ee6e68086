//! Sandboxes and addresses: whom the rules lead to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::PodUid;

use super::NodeState;
use crate::addresses::{AddressSource, Rank};
use crate::sandbox::{Sandbox, SandboxId};

impl NodeState {
    /// The runtime made a sandbox, or changed one. The pod may be unknown to the API yet, or ask
    /// for nothing.
    pub fn sandbox_up(&mut self, now: Duration, sandbox: Sandbox) {
        self.record_up(sandbox);
        self.converge(now);
    }

    /// The runtime removed a sandbox: its addresses may be somebody else's soon, whatever the API
    /// still says.
    pub fn sandbox_down(&mut self, now: Duration, id: &SandboxId) {
        self.record_down(id);
        self.converge(now);
    }

    /// The runtime's sandboxes, all of them: those seen before that are missing are gone. Pods
    /// whose sandbox was never seen keep the addresses the API names.
    pub fn sandboxes_listed(&mut self, now: Duration, mut sandboxes: Vec<Sandbox>) {
        let listed: BTreeSet<&SandboxId> = sandboxes.iter().map(|sandbox| &sandbox.id).collect();
        let gone = self.addresses.ids().filter(|id| !listed.contains(id));
        let gone: Vec<SandboxId> = gone.cloned().collect();
        sandboxes.sort_by_key(|sandbox| sandbox.written);
        for sandbox in sandboxes {
            self.record_up(sandbox);
        }
        for id in gone {
            self.record_down(&id);
        }
        self.converge(now);
    }

    fn record_up(&mut self, sandbox: Sandbox) {
        let arrival = self.arrival();
        for uid in self.addresses.up(sandbox, arrival) {
            // rules found at the start lead where the pod was; it may have moved since
            if let Some((newest, _)) = self.addresses.newest(&uid)
                && let Some(pod) = self.pods.get_mut(&uid)
            {
                pod.recovered.retain(|m| newest.ips.contains(&m.pod_ip));
            }
            self.update_addresses(&uid);
        }
    }

    fn record_down(&mut self, id: &SandboxId) {
        let pods = &self.pods;
        let known = |uid: &PodUid| pods.get(uid).is_some_and(|t| t.facts.is_some());
        if let Some(uid) = self.addresses.down(id, known) {
            self.update_addresses(&uid);
        }
    }

    /// Finds a pod's addresses anew; whoever gains or loses one by it is looked at.
    pub(super) fn update_addresses(&mut self, uid: &PodUid) {
        let PodAddresses { ips, source, claim } = self.addresses_of(uid);
        let touched = self.addresses.claim(uid, claim);
        self.dirty.extend(touched);
        if let Some(pod) = self.pods.get_mut(uid)
            && (pod.ips != ips || pod.source != source)
        {
            pod.ips = ips;
            pod.source = source;
            self.dirty.insert(uid.clone());
        }
    }

    /// Finds where a pod is from all that is known.
    pub(super) fn addresses_of(&self, uid: &PodUid) -> PodAddresses {
        let pod = self.pods.get(uid);
        let facts = pod.and_then(|pod| pod.facts.as_ref());
        if let Some(facts) = facts {
            if facts.finished {
                return PodAddresses::default();
            }
            if facts.spec.host_network {
                // the node's own addresses: many pods share them, none gets rules to them
                return PodAddresses {
                    ips: facts.pod_ips.clone(),
                    source: AddressSource::Status,
                    claim: None,
                };
            }
        }
        if let Some((sandbox, arrival)) = self.addresses.newest(uid) {
            let source = AddressSource::Sandbox(sandbox.id.clone());
            let rank = Rank::Sandbox(sandbox.written, arrival);
            return PodAddresses::claimed(sandbox.ips.clone(), source, rank);
        }
        let Some(pod) = pod else {
            return PodAddresses::default();
        };
        let Some(facts) = facts else {
            let found = pod.recovered.iter().map(|mapping| mapping.pod_ip);
            let found: BTreeSet<IpAddr> = found.collect();
            return PodAddresses {
                claim: Some((found.into_iter().collect(), Rank::Recovered(pod.seq))),
                ..PodAddresses::default()
            };
        };
        // the API says for a while what is true no more
        let stale = |ip: &IpAddr| self.addresses.has_ended(uid, *ip);
        if facts.pod_ips.is_empty() || facts.pod_ips.iter().any(stale) {
            return PodAddresses::default();
        }
        let rank = Rank::Status(pod.addressed);
        PodAddresses::claimed(facts.pod_ips.clone(), AddressSource::Status, rank)
    }
}

/// Where a pod is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PodAddresses {
    pub(super) ips: Vec<IpAddr>,
    pub(super) source: AddressSource,
    /// The addresses it claims against other pods, and with what weight.
    pub(super) claim: Option<(Vec<IpAddr>, Rank)>,
}

impl PodAddresses {
    fn claimed(ips: Vec<IpAddr>, source: AddressSource, rank: Rank) -> Self {
        let claim = Some((ips.clone(), rank));
        Self { ips, source, claim }
    }
}
