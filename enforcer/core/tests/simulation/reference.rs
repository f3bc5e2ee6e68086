//! The reference: the events that the state machine got, in the simplest form, and which pod owns an
//! address because of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_enforcer_core::{PodFacts, Sandbox, SandboxId, SandboxUpdate};
use portmapping_shared::{HostPort, Mapping, PodUid, Protocol};

#[derive(Default)]
pub(crate) struct Reference {
    /// Mappings found at the start, which count until the API shows their pod.
    recovered: BTreeSet<Mapping>,
    shown: BTreeMap<PodUid, PodFacts>,
    /// When the API first named a pod's present addresses.
    learned: BTreeMap<PodUid, u64>,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    ended: BTreeSet<(PodUid, IpAddr)>,
    count: u64,
}

impl Reference {
    pub(crate) fn new(recovered: BTreeSet<Mapping>) -> Self {
        Self {
            recovered,
            ..Self::default()
        }
    }

    pub(crate) fn shown(&mut self, facts: &PodFacts) {
        self.count += 1;
        let uid = &facts.pod.uid;
        // of two pods with one name the earlier is gone
        let namesake =
            |other: &&PodFacts| other.pod.name == facts.pod.name && other.pod.uid != *uid;
        if let Some(gone) = self
            .shown
            .values()
            .find(namesake)
            .map(|f| f.pod.uid.clone())
        {
            self.gone(&gone);
        }
        let before = self.shown.insert(uid.clone(), facts.clone());
        if before.is_none_or(|before| before.pod_ips != facts.pod_ips) {
            self.learned.insert(uid.clone(), self.count);
        }
        self.recovered.retain(|mapping| mapping.owner != *uid);
        let stale = |ip: &IpAddr| self.ended.contains(&(uid.clone(), *ip));
        if !facts.pod_ips.is_empty() && !facts.pod_ips.iter().any(stale) {
            self.ended.retain(|(other, _)| other != uid);
        }
    }

    pub(crate) fn gone(&mut self, uid: &PodUid) {
        self.shown.remove(uid);
        self.recovered.retain(|mapping| mapping.owner != *uid);
        self.ended.retain(|(other, _)| other != uid);
    }

    pub(crate) fn relisted(&mut self, living: &BTreeSet<PodUid>) {
        let known = self
            .shown
            .keys()
            .chain(self.recovered.iter().map(|m| &m.owner));
        let gone: Vec<PodUid> = known.filter(|uid| !living.contains(uid)).cloned().collect();
        for uid in gone {
            self.gone(&uid);
        }
    }

    pub(crate) fn record(&mut self, update: &SandboxUpdate) {
        match update {
            SandboxUpdate::Up(sandbox) => self.up(sandbox),
            SandboxUpdate::Down(id) => self.down(id),
            SandboxUpdate::Listed(all) => {
                for sandbox in all {
                    self.up(sandbox);
                }
                let gone: Vec<SandboxId> = self
                    .sandboxes
                    .keys()
                    .filter(|id| !all.iter().any(|sandbox| sandbox.id == **id))
                    .cloned()
                    .collect();
                for id in gone {
                    self.down(&id);
                }
            }
        }
    }

    fn up(&mut self, sandbox: &Sandbox) {
        for ip in &sandbox.ips {
            self.ended.remove(&(sandbox.uid.clone(), *ip));
        }
        self.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
    }

    fn down(&mut self, id: &SandboxId) {
        let Some(gone) = self.sandboxes.remove(id) else {
            return;
        };
        let same = |other: &&Sandbox| other.uid == gone.uid;
        for ip in gone.ips {
            let lives = |other: &Sandbox| other.ips.contains(&ip);
            if !self.sandboxes.values().filter(same).any(lives) {
                self.ended.insert((gone.uid.clone(), ip));
            }
        }
    }

    fn newest(&self, uid: &PodUid) -> Option<&Sandbox> {
        let own = self.sandboxes.values().filter(|s| s.uid == *uid);
        own.max_by_key(|sandbox| sandbox.written)
    }

    /// The weight of a pod's claim to an address; None where it has none.
    fn claim(&self, uid: &PodUid, ip: IpAddr) -> Option<(bool, u128)> {
        let facts = self.shown.get(uid);
        if facts.is_some_and(|facts| facts.finished) {
            return None;
        }
        if let Some(sandbox) = self.newest(uid) {
            let named = sandbox.ips.contains(&ip);
            return named.then_some((true, sandbox.written.as_nanos()));
        }
        let stale = |ip: &IpAddr| self.ended.contains(&(uid.clone(), *ip));
        let facts = facts.filter(|facts| !facts.pod_ips.iter().any(stale))?;
        let learned = self.learned.get(uid).copied().unwrap_or_default();
        facts.pod_ips.contains(&ip).then(|| (false, learned.into()))
    }

    /// I3: an address has one owner, the pod with the newest sandbox, and rules lead to no other.
    pub(crate) fn check_mapping(&self, mapping: &Mapping) -> Result<(), String> {
        let (uid, ip) = (&mapping.owner, mapping.pod_ip);
        let own = self.claim(uid, ip);
        let found = self.recovered.contains(mapping) && self.newest(uid).is_none();
        if own.is_none() && (!found || self.ended.contains(&(uid.clone(), ip))) {
            return Err(format!("I3: {mapping}, whose address is gone"));
        }
        let others = self
            .shown
            .keys()
            .chain(self.sandboxes.values().map(|s| &s.uid));
        let better = |other: &&PodUid| *other != uid && self.claim(other, ip) > own;
        match others.into_iter().find(better) {
            Some(other) => Err(format!("I3: {mapping}, but {other} has that address")),
            None => Ok(()),
        }
    }

    /// Whether the spec of a pod that the state machine knows claims the port.
    pub(crate) fn is_static(&self, key: (Protocol, HostPort)) -> bool {
        let living = self.shown.values().filter(|facts| !facts.finished);
        let mut ports = living
            .flat_map(|facts| facts.spec.lasting_containers())
            .flat_map(|c| &c.ports);
        ports
            .any(|port| port.protocol == key.0.as_str() && port.host_port == i64::from(key.1.get()))
    }
}
