//! Whether looking only at what changed has missed anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use portmapping_shared::PodUid;

use super::NodeState;
use super::addressing::PodAddresses;
use crate::mappings::MappingTable;
use crate::pods::state::{self, Hold, Want};
use crate::ports::PortKey;

impl NodeState {
    /// Compares every index with what it is an index of, and every pod with what it would be asked
    /// were it looked at: the first difference, in words. Costs as much as the node is large; for
    /// tests and simulations.
    pub fn audit(&self) -> Result<(), String> {
        if !self.dirty.is_empty() {
            return Err(format!("not looked at: {:?}", self.dirty));
        }
        self.audit_ports()?;
        self.audit_pods()
    }

    fn audit_ports(&self) -> Result<(), String> {
        let mut owners: BTreeMap<PortKey, PodUid> = BTreeMap::new();
        let (mut missing, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for (uid, pod) in &self.pods {
            for (lease, hold) in &pod.lease {
                let key = state::key(lease);
                if let Some(other) = owners.insert(key, uid.clone()) {
                    return Err(format!("{key:?} is leased to {other} and {uid}"));
                }
                match hold {
                    Hold::Missing => missing.insert(key),
                    Hold::Lost => lost.insert(key),
                    Hold::Asked | Hold::Held => false,
                };
            }
        }
        same("owners", &self.owners, &owners)?;
        same("missing holds", &self.missing, &missing)?;
        same("lost holds", &self.lost, &lost)?;
        let mut states: BTreeMap<PortKey, u32> = BTreeMap::new();
        let resting = self.cooling.keys().chain(self.quarantined.keys());
        let letting_go = self.draining.keys().chain(&self.releasing).copied();
        for key in resting.chain(letting_go).chain(owners.keys().copied()) {
            *states.entry(key).or_default() += 1;
        }
        if let Some((key, _)) = states.iter().find(|(_, count)| **count > 1) {
            return Err(format!("{key:?} is in several states at once"));
        }
        if let Some(key) = states.keys().find(|key| self.pool.is_free(**key)) {
            return Err(format!("{key:?} is in use and free"));
        }
        if let Some(key) = self.static_keys().find(|key| self.pool.is_free(*key)) {
            return Err(format!("{key:?} is static and free"));
        }
        let rests = |key: &PortKey| self.cooling.contains(*key) || self.draining.contains_key(key);
        let leaves = |key: &PortKey| rests(key) || self.releasing.contains(key);
        if let Some(key) = self.release_early.iter().find(|key| !leaves(key)) {
            return Err(format!("{key:?} is to be released early and does not rest"));
        }
        match self.previous.ports().find(|key| !rests(key)) {
            Some(key) => Err(format!("{key:?} has a former use and does not rest")),
            None => Ok(()),
        }
    }

    fn audit_pods(&self) -> Result<(), String> {
        let mut desired = MappingTable::default();
        let mut waiting = BTreeSet::new();
        let mut wakes = BTreeSet::new();
        for (uid, pod) in &self.pods {
            for mapping in self.desired_of(uid) {
                desired.insert(mapping);
            }
            let kept = PodAddresses {
                ips: pod.ips.clone(),
                source: pod.source.clone(),
                claim: self.addresses.claim_of(uid),
            };
            same("place", &kept, &self.addresses_of(uid))?;
            if !pod.unleased().is_empty() {
                waiting.insert((pod.seq, uid.clone()));
                let refused = pod.refusal.is_some();
                if matches!(pod.want, Want::Ports(_)) && !refused {
                    return Err(format!("{uid} waits for ports and is not told so"));
                }
            }
            wakes.extend(pod.wake.map(|at| (at, uid.clone())));
            let quiet = pod.publish.in_flight.is_none() && pod.publish.retry_at.is_none();
            let due = self.publication(uid).filter(|_| quiet);
            let echo = pod.publish.echo.as_ref().map(|(echo, _)| echo);
            if let Some(due) = due.filter(|due| echo != Some(&due.wanted)) {
                return Err(format!("{uid} is due a write: {:?}", due.wanted));
            }
        }
        same("desired mappings", &self.desired, &desired)?;
        same("waiting pods", &self.waiting, &waiting)?;
        same("wakes", &self.wakes, &wakes)?;
        let all: BTreeSet<&PodUid> = self
            .kernel
            .mappings
            .owners()
            .chain(desired.owners())
            .collect();
        let unsettled = all
            .into_iter()
            .filter(|uid| self.kernel.mappings.of(uid) != desired.of(uid));
        same(
            "unsettled pods",
            &self.unsettled,
            &unsettled.cloned().collect(),
        )
    }
}

fn same<T: PartialEq + Debug>(what: &str, kept: &T, found: &T) -> Result<(), String> {
    if kept == found {
        return Ok(());
    }
    Err(format!("{what}: kept {kept:?}, found {found:?}"))
}
