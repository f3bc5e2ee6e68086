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
        self.note_up(sandbox);
        self.converge(now);
    }

    /// The runtime removed a sandbox: its addresses may be somebody else's soon, whatever the API
    /// still says.
    pub fn sandbox_down(&mut self, now: Duration, id: &SandboxId) {
        self.note_down(id);
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
            self.note_up(sandbox);
        }
        for id in gone {
            self.note_down(&id);
        }
        self.converge(now);
    }

    fn note_up(&mut self, sandbox: Sandbox) {
        let arrival = self.arrival();
        for uid in self.addresses.up(sandbox, arrival) {
            // rules found at the start lead where the pod was; it may have moved since
            if let Some((newest, _)) = self.addresses.newest(&uid)
                && let Some(tenant) = self.tenants.get_mut(&uid)
            {
                tenant.recovered.retain(|m| newest.ips.contains(&m.pod_ip));
            }
            self.readdress(&uid);
        }
    }

    fn note_down(&mut self, id: &SandboxId) {
        let tenants = &self.tenants;
        let known = |uid: &PodUid| tenants.get(uid).is_some_and(|t| t.facts.is_some());
        if let Some(uid) = self.addresses.down(id, known) {
            self.readdress(&uid);
        }
    }

    /// Finds a pod's addresses anew; whoever gains or loses one by it is looked at.
    pub(super) fn readdress(&mut self, uid: &PodUid) {
        let Place { ips, source, claim } = self.place_of(uid);
        let touched = self.addresses.claim(uid, claim);
        self.dirty.extend(touched);
        if let Some(tenant) = self.tenants.get_mut(uid)
            && (tenant.ips != ips || tenant.source != source)
        {
            tenant.ips = ips;
            tenant.source = source;
            self.dirty.insert(uid.clone());
        }
    }

    /// Finds where a pod is from all that is known.
    pub(super) fn place_of(&self, uid: &PodUid) -> Place {
        let tenant = self.tenants.get(uid);
        let facts = tenant.and_then(|tenant| tenant.facts.as_ref());
        if let Some(facts) = facts {
            if facts.finished {
                return Place::default();
            }
            if facts.spec.host_network {
                // the node's own addresses: many pods share them, none gets rules to them
                return Place {
                    ips: facts.pod_ips.clone(),
                    source: AddressSource::Status,
                    claim: None,
                };
            }
        }
        if let Some((sandbox, arrival)) = self.addresses.newest(uid) {
            let source = AddressSource::Sandbox(sandbox.id.clone());
            let rank = Rank::Sandbox(sandbox.written, arrival);
            return Place::claimed(sandbox.ips.clone(), source, rank);
        }
        let Some(tenant) = tenant else {
            return Place::default();
        };
        let Some(facts) = facts else {
            let found = tenant.recovered.iter().map(|mapping| mapping.pod_ip);
            let found: BTreeSet<IpAddr> = found.collect();
            return Place {
                claim: Some((found.into_iter().collect(), Rank::Recovered(tenant.seq))),
                ..Place::default()
            };
        };
        // the API says for a while what is true no more
        let stale = |ip: &IpAddr| self.addresses.has_ended(uid, *ip);
        if facts.pod_ips.is_empty() || facts.pod_ips.iter().any(stale) {
            return Place::default();
        }
        let rank = Rank::Status(tenant.addressed);
        Place::claimed(facts.pod_ips.clone(), AddressSource::Status, rank)
    }
}

/// Where a pod is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ips: Vec<IpAddr>,
    pub(super) source: AddressSource,
    /// The addresses it claims against other pods, and with what weight.
    pub(super) claim: Option<(Vec<IpAddr>, Rank)>,
}

impl Place {
    fn claimed(ips: Vec<IpAddr>, source: AddressSource, rank: Rank) -> Self {
        let claim = Some((ips.clone(), rank));
        Self { ips, source, claim }
    }
}
