//! The reference: the events that the state machine got, in the simplest form, and which pod owns an
//! address because of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_enforcer_core::{PodFacts, Recovered, Sandbox, SandboxId, SandboxUpdate};
use portmapping_shared::{HostPort, LeasedPort, Mapping, Plan, PodUid, PortKey, Protocol};

use crate::requests::Requests;
use crate::world::EPOCH;

/// A read of a pod proves nothing sooner after the removal of its result.
const CONFIRM: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Reference {
    /// Mappings found at the start, which count until the API shows their pod.
    pub(crate) recovered: BTreeSet<Mapping>,
    pub(crate) requests: Requests,
    shown: BTreeMap<PodUid, PodFacts>,
    /// When the API first named a pod's present addresses.
    learned: BTreeMap<PodUid, u64>,
    sandboxes: BTreeMap<SandboxId, Sandbox>,
    ended: BTreeSet<(PodUid, IpAddr)>,
    /// When the API first named a pod's present addresses, by the node's clock.
    reported: BTreeMap<PodUid, Duration>,
    /// When the last result of a pod was removed.
    removed: BTreeMap<PodUid, Duration>,
    count: u64,
    /// What the keeper was said to hold, and the kernel to have.
    pub(crate) held: BTreeSet<PortKey>,
    pub(crate) rules: BTreeSet<Mapping>,
    pub(crate) intact: bool,
    /// The node's addresses, if they are known.
    pub(crate) host_addresses: Option<BTreeSet<IpAddr>>,
    /// Whether forwarded packets of IPv4, and of IPv6, reach no pod.
    pub(crate) closed: [bool; 2],
}

impl Reference {
    pub(crate) fn new(recovered: BTreeSet<Mapping>, found: &Recovered) -> Self {
        Self {
            recovered,
            held: found.held.clone(),
            rules: found.mappings.clone(),
            intact: found.intact,
            host_addresses: Some(found.host_addresses.clone()).filter(|all| !all.is_empty()),
            ..Self::default()
        }
    }

    pub(crate) fn shown(&mut self, now: Duration, facts: &PodFacts) {
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
        self.requests.shown(facts, before.is_none());
        if before.is_none_or(|before| before.pod_ips != facts.pod_ips) {
            self.learned.insert(uid.clone(), self.count);
            self.reported.insert(uid.clone(), EPOCH + now);
        }
        self.recovered.retain(|mapping| mapping.owner != *uid);
        let runtime = self.runtime_uid(uid).clone();
        let stale = |ip: &IpAddr| self.has_ended(uid, *ip);
        if !facts.pod_ips.is_empty() && !facts.pod_ips.iter().any(stale) {
            self.ended.retain(|(other, _)| *other != runtime);
        }
    }

    pub(crate) fn gone(&mut self, uid: &PodUid) {
        let runtime = self.runtime_uid(uid).clone();
        self.shown.remove(uid);
        self.requests.gone(uid);
        self.recovered.retain(|mapping| mapping.owner != *uid);
        self.ended.retain(|(other, _)| *other != runtime);
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

    pub(crate) fn record(&mut self, now: Duration, update: &SandboxUpdate) {
        match update {
            SandboxUpdate::Up(sandbox) => self.up(sandbox),
            SandboxUpdate::Down(id) => self.down(now, id),
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
                    self.down(now, &id);
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

    fn down(&mut self, now: Duration, id: &SandboxId) {
        let Some(gone) = self.sandboxes.remove(id) else {
            return;
        };
        self.removed.insert(gone.uid.clone(), now);
        let same = |other: &&Sandbox| other.uid == gone.uid;
        for ip in gone.ips {
            let lives = |other: &Sandbox| other.ips.contains(&ip);
            if !self.sandboxes.values().filter(same).any(lives) {
                self.ended.insert((gone.uid.clone(), ip));
            }
        }
    }

    /// A read of the pod that began at `asked`. Returns whether it proves that the pod still has its
    /// addresses.
    pub(crate) fn confirm(&mut self, uid: &PodUid, asked: Duration, running_at: &[IpAddr]) -> bool {
        let runtime = self.runtime_uid(uid).clone();
        let removed = self.removed.get(&runtime);
        let late = removed.is_some_and(|removed| asked >= *removed + CONFIRM);
        let facts = self.shown.get(uid);
        let same = facts.is_some_and(|facts| facts.pod_ips == running_at && !running_at.is_empty());
        let reported = self.reported.get(uid).copied().unwrap_or_default();
        let names = |sandbox: &Sandbox| {
            let known = self.shown.contains_key(self.pod_of(&sandbox.uid));
            let counts = known || sandbox.written >= reported;
            counts && sandbox.ips.iter().any(|ip| running_at.contains(ip))
        };
        let confirmed =
            late && same && self.newest(uid).is_none() && !self.sandboxes.values().any(names);
        if confirmed {
            self.ended.retain(|(other, _)| *other != runtime);
        }
        confirmed
    }

    pub(crate) fn programmed(&mut self, plan: &Plan) {
        for mapping in &plan.to_remove {
            self.rules.remove(mapping);
        }
        self.rules.extend(plan.to_create.iter().cloned());
        self.intact = true;
    }

    /// The pod as the API showed it last.
    pub(crate) fn facts(&self, uid: &PodUid) -> Option<&PodFacts> {
        self.shown.get(uid)
    }

    /// All pods that were shown.
    pub(crate) fn all(&self) -> impl Iterator<Item = &PodFacts> {
        self.shown.values()
    }

    /// I10: whether each of these ports is held, and has a rule at each address of the pod.
    pub(crate) fn is_mapped(&self, uid: &PodUid, leases: &[LeasedPort]) -> bool {
        let ended = |ip: &IpAddr| self.has_ended(uid, *ip);
        let named = self.shown.get(uid).map(|facts| facts.pod_ips.clone());
        let named = named.unwrap_or_default();
        let all = match self.newest(uid) {
            Some(sandbox) => &sandbox.ips,
            None => &named,
        };
        let hosts = self.host_addresses.as_ref();
        let mut ips = Vec::new();
        for of_v4 in [true, false] {
            let same = |ip: &&IpAddr| ip.is_ipv4() == of_v4;
            let mut family = all.iter().filter(same);
            let reported = family.clone().find(|ip| named.contains(ip));
            // the node may not serve the family
            let served = hosts.is_none_or(|hosts| hosts.iter().any(|ip| same(&ip)));
            ips.extend(reported.or(family.next()).filter(|_| served));
        }
        let ruled = |lease: &LeasedPort, ip: IpAddr| {
            self.rules.contains(&Mapping {
                protocol: lease.protocol,
                host_port: lease.host_port,
                host_ip: lease.host_ip,
                pod_ip: ip,
                container_port: lease.container_port,
                owner: uid.clone(),
            })
        };
        let whole = |lease: &LeasedPort| {
            let held = self.held.contains(&(lease.protocol, lease.host_port));
            let there = |ip: IpAddr| hosts.is_none_or(|hosts| hosts.contains(&ip));
            let same = |ip: &&&IpAddr| {
                lease
                    .host_ip
                    .is_none_or(|host| host.is_ipv4() == ip.is_ipv4())
            };
            let mut needed = ips.iter().filter(same).peekable();
            held && lease.host_ip.is_none_or(there)
                && needed.peek().is_some()
                && needed.all(|ip| {
                    ruled(lease, **ip) && !ended(ip) && !self.closed[usize::from(ip.is_ipv6())]
                })
        };
        leases.is_empty() || self.intact && leases.iter().all(whole)
    }

    /// The uid that the runtime has for the pod.
    fn runtime_uid<'a>(&'a self, uid: &'a PodUid) -> &'a PodUid {
        let facts = self.shown.get(uid);
        let runtime = facts.and_then(|facts| facts.runtime_uid.as_ref());
        runtime.unwrap_or(uid)
    }

    /// The pod that the runtime has this uid for.
    fn pod_of<'a>(&'a self, runtime: &'a PodUid) -> &'a PodUid {
        let same = |facts: &&PodFacts| facts.runtime_uid.as_ref() == Some(runtime);
        let facts = self.shown.values().find(same);
        facts.map_or(runtime, |facts| &facts.pod.uid)
    }

    fn has_ended(&self, uid: &PodUid, ip: IpAddr) -> bool {
        let key = (self.runtime_uid(uid).clone(), ip);
        self.ended.contains(&key)
    }

    fn newest(&self, uid: &PodUid) -> Option<&Sandbox> {
        let runtime = self.runtime_uid(uid);
        let own = self.sandboxes.values().filter(|s| s.uid == *runtime);
        own.max_by_key(|sandbox| sandbox.written)
    }

    /// The weight of a pod's claim to an address; None where it has none.
    fn claim(&self, uid: &PodUid, ip: IpAddr) -> Option<(bool, u128)> {
        let facts = self.shown.get(uid);
        if facts.is_some_and(|facts| facts.finished) || self.pod_of(uid) != uid {
            return None;
        }
        if let Some(sandbox) = self.newest(uid) {
            let named = sandbox.ips.contains(&ip);
            return named.then_some((true, sandbox.written.as_nanos()));
        }
        let stale = |ip: &IpAddr| self.has_ended(uid, *ip);
        let facts = facts.filter(|facts| !facts.pod_ips.iter().any(stale))?;
        let learned = self.learned.get(uid).copied().unwrap_or_default();
        facts.pod_ips.contains(&ip).then(|| (false, learned.into()))
    }

    /// I3: an address has one owner, the pod with the newest sandbox, and rules lead to no other.
    pub(crate) fn check_mapping(&self, mapping: &Mapping) -> Result<(), String> {
        let (uid, ip) = (&mapping.owner, mapping.pod_ip);
        let own = self.claim(uid, ip);
        let found = self.recovered.contains(mapping) && self.newest(uid).is_none();
        if own.is_none() && (!found || self.has_ended(uid, ip)) {
            return Err(format!("I3: {mapping}, whose address is gone"));
        }
        let others = self
            .shown
            .keys()
            .chain(self.sandboxes.values().map(|s| &s.uid));
        let better = |other: &&PodUid| {
            *other != uid && self.claim(other, ip) > own && !self.is_leftover(other, ip)
        };
        match others.into_iter().find(better) {
            Some(other) => Err(format!("I3: {mapping}, but {other} has that address")),
            None => Ok(()),
        }
    }

    /// Whether a result of an unknown pod is older than what the API says of the address.
    fn is_leftover(&self, uid: &PodUid, ip: IpAddr) -> bool {
        let by_api = |(other, facts): &(&PodUid, &PodFacts)| {
            let named = |sandbox: &Sandbox| sandbox.ips.iter().any(|ip| facts.pod_ips.contains(ip));
            self.claim(other, ip).is_some() && self.newest(other).is_none_or(named)
        };
        let named = self.shown.iter().filter(by_api);
        let reported = named
            .filter_map(|(other, _)| self.reported.get(other))
            .max();
        let written = self.newest(uid).map(|sandbox| sandbox.written);
        !self.shown.contains_key(uid) && written < reported.copied()
    }

    /// Whether the spec of a pod that the state machine knows, and that has a sandbox, claims the port.
    /// `host_ip`: of the lease that would be in conflict.
    pub(crate) fn is_static(&self, key: (Protocol, HostPort), host_ip: Option<IpAddr>) -> bool {
        let runs =
            |facts: &&PodFacts| !facts.pod_ips.is_empty() || self.newest(&facts.pod.uid).is_some();
        let living = self.shown.values().filter(|facts| !facts.finished);
        let living: Vec<&PodFacts> = living.filter(runs).collect();
        // beyond the limit for a namespace, the first ones count, and that is not recorded here
        let claims = |namespace: &str| {
            let pods = living
                .iter()
                .filter(|facts| facts.pod.namespace == namespace);
            let containers = pods.flat_map(|facts| facts.spec.lasting_containers());
            let ports = containers.flat_map(|container| &container.ports);
            ports.filter(|port| port.host_port > 0).count()
        };
        let living = living
            .iter()
            .filter(|facts| claims(&facts.pod.namespace) <= 4);
        let mut ports = living
            .flat_map(|facts| facts.spec.lasting_containers())
            .flat_map(|c| &c.ports);
        let conflicts = |claimed: &str| {
            let claimed: Option<IpAddr> = claimed.parse().ok();
            let claimed = claimed.filter(|ip| !ip.is_unspecified());
            claimed.is_none() || host_ip.is_none() || claimed == host_ip
        };
        ports.any(|port| {
            let same = port.protocol == key.0.as_str() && port.host_port == i64::from(key.1.get());
            same && conflicts(&port.host_ip)
        })
    }
}
