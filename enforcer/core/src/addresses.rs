//! Which addresses each pod has, and which pod owns each address.
//!
//! A pod's addresses are those of its newest sandbox, else what the API says. An address has one
//! owner: of several pods that claim it, the one with the newest sandbox. What the API says counts
//! less than any sandbox, because it comes late and is removed late. Only a result of a pod that the
//! API has not shown may be a leftover: one that was written before the API first named the address
//! for another pod counts less than the API. So the users who may write results on the node (root)
//! decide which pod owns an address, and no other user does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{LeasedPort, PodUid};

use crate::pods::PodState;
use crate::sandbox::{AddressSource, Sandbox, SandboxId};

/// Pods whose ended sandboxes are remembered before the API shows the pod. A watch is never that
/// many pods behind.
const MAX_UNKNOWN: usize = 1024;

/// The weight of a claim; a later variant outweighs an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// The kernel has rules for it from before a restart; when the pod was first seen, as a count.
    Recovered(u64),
    /// The API says so; when it first did, since the Unix epoch and as a count.
    Status(Duration, u64),
    /// A sandbox has it.
    Sandbox {
        /// When its result was written, since the Unix epoch.
        written: Duration,
        /// When it arrived, as a count.
        arrival: u64,
        /// When the API first named an address of it, since the Unix epoch; zero if it has not yet,
        /// None if it has not shown the pod.
        reported: Option<Duration>,
    },
}

/// The addresses of a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PodAddresses {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) source: AddressSource,
    /// The addresses that it claims against other pods, and with what weight.
    pub(crate) claim: Option<(Vec<IpAddr>, Rank)>,
}

impl PodAddresses {
    fn claimed(ips: Vec<IpAddr>, source: AddressSource, rank: Rank) -> Self {
        let claim = Some((ips.clone(), rank));
        Self { ips, source, claim }
    }
}

/// All sandboxes, and the claims of all pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    sandboxes: BTreeMap<SandboxId, (Sandbox, u64)>,
    of_pod: BTreeMap<PodUid, BTreeSet<(Duration, u64, SandboxId)>>,
    /// Addresses of a pod's ended sandboxes, while the API may still name them.
    ended: BTreeMap<PodUid, BTreeSet<IpAddr>>,
    /// Pods in `ended` that the API has not shown, the oldest first.
    unknown: VecDeque<PodUid>,
    /// The uid under which the runtime knows each static pod, and the way back. The API shows a static
    /// pod as a mirror pod with a uid of its own.
    runtime_uids: BTreeMap<PodUid, PodUid>,
    mirror_uids: BTreeMap<PodUid, PodUid>,
    claims: BTreeMap<IpAddr, BTreeMap<PodUid, Rank>>,
    claimed: BTreeMap<PodUid, (Vec<IpAddr>, Rank)>,
}

impl Addresses {
    /// Finds a pod's addresses from all that is known: of each family the one that is mapped. A
    /// sandbox may have more of them, and the pod claims all of those.
    pub(crate) fn locate(
        &self,
        uid: &PodUid,
        pod: Option<&PodState>,
        leases: &BTreeSet<LeasedPort>,
    ) -> PodAddresses {
        let mut found = self.find(uid, pod, leases);
        let named = |ip: &IpAddr| pod.is_some_and(|pod| pod.is_reported_at(*ip, leases));
        found.ips = one_per_family(&found.ips, named);
        found
    }

    fn find(
        &self,
        uid: &PodUid,
        pod: Option<&PodState>,
        leases: &BTreeSet<LeasedPort>,
    ) -> PodAddresses {
        if self.mirror_uids.contains_key(uid) {
            return PodAddresses::default();
        }
        let facts = pod.and_then(|pod| pod.facts.as_ref());
        if let Some(facts) = facts {
            if facts.finished {
                return PodAddresses::default();
            }
            if facts.spec.host_network {
                // the node's own addresses: many pods share them, and no rule leads to them
                return PodAddresses {
                    ips: facts.pod_ips.clone(),
                    source: AddressSource::Status,
                    claim: None,
                };
            }
        }
        if let Some((sandbox, arrival)) = self.newest(uid) {
            let source = AddressSource::Sandbox(sandbox.id.clone());
            let reported = pod.and_then(|pod| {
                let named = &pod.facts.as_ref()?.pod_ips;
                let reported = sandbox.ips.iter().any(|ip| named.contains(ip));
                Some(if reported {
                    pod.addressed.0
                } else {
                    Duration::ZERO
                })
            });
            let rank = Rank::Sandbox {
                written: sandbox.written,
                arrival,
                reported,
            };
            return PodAddresses::claimed(sandbox.ips.clone(), source, rank);
        }
        let Some(pod) = pod else {
            return PodAddresses::default();
        };
        let Some(facts) = facts else {
            let recovered = pod.recovered(leases);
            let ips: BTreeSet<IpAddr> = recovered.iter().map(|mapping| mapping.pod_ip).collect();
            let rank = Rank::Recovered(pod.seq);
            return PodAddresses {
                claim: Some((ips.into_iter().collect(), rank)),
                ..PodAddresses::default()
            };
        };
        // the API still names an address for a while after its sandbox ended
        let stale = |ip: &IpAddr| self.has_ended(uid, *ip);
        if facts.pod_ips.is_empty() || facts.pod_ips.iter().any(stale) {
            return PodAddresses::default();
        }
        let (reported, count) = pod.addressed;
        let rank = Rank::Status(reported, count);
        PodAddresses::claimed(facts.pod_ips.clone(), AddressSource::Status, rank)
    }

    /// Records a sandbox. Returns the pods whose addresses may have changed.
    pub(crate) fn up(&mut self, mut sandbox: Sandbox, arrival: u64) -> BTreeSet<PodUid> {
        for ip in &mut sandbox.ips {
            *ip = ip.to_canonical();
        }
        if self
            .sandboxes
            .get(&sandbox.id)
            .is_some_and(|(known, _)| *known == sandbox)
        {
            return BTreeSet::new();
        }
        let before = self.take(&sandbox.id);
        let mut touched = BTreeSet::from([sandbox.uid.clone()]);
        self.of_pod.entry(sandbox.uid.clone()).or_default().insert((
            sandbox.written,
            arrival,
            sandbox.id.clone(),
        ));
        if let Some(ended) = self.ended.get_mut(&sandbox.uid) {
            ended.retain(|ip| !sandbox.ips.contains(ip));
        }
        self.sandboxes
            .insert(sandbox.id.clone(), (sandbox, arrival));
        if let Some(before) = before {
            self.record_ended(&before);
            touched.insert(before.uid);
        }
        touched.iter().map(|uid| self.pod_of(uid).clone()).collect()
    }

    /// Removes a sandbox. Returns its pod. `known`: whether the API has shown a pod.
    pub(crate) fn down(
        &mut self,
        id: &SandboxId,
        known: impl Fn(&PodUid) -> bool,
    ) -> Option<PodUid> {
        let sandbox = self.take(id)?;
        self.record_ended(&sandbox);
        let pod = self.pod_of(&sandbox.uid).clone();
        if !known(&pod) && !self.unknown.contains(&sandbox.uid) {
            self.unknown.push_back(sandbox.uid.clone());
            while self.unknown.len() > MAX_UNKNOWN {
                let Some(oldest) = self.unknown.pop_front() else {
                    break;
                };
                if !known(self.pod_of(&oldest)) {
                    self.ended.remove(&oldest);
                }
            }
        }
        Some(pod)
    }

    /// The ids of all sandboxes.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &SandboxId> {
        self.sandboxes.keys()
    }

    /// The pod's newest sandbox, with its arrival.
    pub(crate) fn newest(&self, uid: &PodUid) -> Option<(&Sandbox, u64)> {
        let (_, _, id) = self.of_pod.get(self.runtime_uid(uid))?.last()?;
        self.sandboxes
            .get(id)
            .map(|(sandbox, arrival)| (sandbox, *arrival))
    }

    /// The API names these addresses. It is up to date once they are not those of ended sandboxes.
    pub(crate) fn api_says(&mut self, uid: &PodUid, ips: &[IpAddr]) {
        let runtime = self.runtime_uid(uid).clone();
        self.unknown.retain(|unknown| *unknown != runtime);
        if !ips.is_empty() && !ips.iter().any(|ip| self.has_ended(uid, *ip)) {
            self.ended.remove(&runtime);
        }
    }

    /// Whether a sandbox of this pod had the address and has ended.
    pub(crate) fn has_ended(&self, uid: &PodUid, ip: IpAddr) -> bool {
        let ended = self.ended.get(self.runtime_uid(uid));
        ended.is_some_and(|ended| ended.contains(&ip))
    }

    /// Whether a result names the address that the API first named at `reported`; a leftover does not
    /// count.
    pub(crate) fn is_named(
        &self,
        ip: IpAddr,
        reported: Duration,
        known: impl Fn(&PodUid) -> bool,
    ) -> bool {
        let mut sandboxes = self.sandboxes.values();
        sandboxes.any(|(sandbox, _)| {
            let counts = known(self.pod_of(&sandbox.uid)) || sandbox.written >= reported;
            counts && sandbox.ips.contains(&ip)
        })
    }

    /// Forgets the pod's ended sandboxes: the pod is gone, or runs at their addresses after all.
    pub(crate) fn forget_ended(&mut self, uid: &PodUid) {
        self.ended.remove(&self.runtime_uid(uid).clone());
    }

    /// The API shows a static pod: the sandboxes that the runtime has for its uid are the pod's. Returns
    /// whether that is new. A second pod with the same one is no mirror of it, and gets nothing.
    pub(crate) fn link(&mut self, uid: &PodUid, runtime: &PodUid) -> bool {
        let free = !self.mirror_uids.contains_key(runtime) && !self.runtime_uids.contains_key(uid);
        if free {
            self.runtime_uids.insert(uid.clone(), runtime.clone());
            self.mirror_uids.insert(runtime.clone(), uid.clone());
        }
        free
    }

    /// The pod is gone. Returns the runtime's uid for it, if that was another.
    pub(crate) fn unlink(&mut self, uid: &PodUid) -> Option<PodUid> {
        let runtime = self.runtime_uids.remove(uid)?;
        self.mirror_uids.remove(&runtime);
        Some(runtime)
    }

    fn runtime_uid<'a>(&'a self, uid: &'a PodUid) -> &'a PodUid {
        self.runtime_uids.get(uid).unwrap_or(uid)
    }

    /// The pod that the runtime knows under this uid.
    fn pod_of<'a>(&'a self, runtime: &'a PodUid) -> &'a PodUid {
        self.mirror_uids.get(runtime).unwrap_or(runtime)
    }

    /// Replaces what a pod claims. Returns the pods whose addresses may have changed.
    pub(crate) fn claim(
        &mut self,
        uid: &PodUid,
        claim: Option<(Vec<IpAddr>, Rank)>,
    ) -> BTreeSet<PodUid> {
        let mut touched = BTreeSet::new();
        if self.claimed.get(uid) == claim.as_ref() {
            return touched;
        }
        touched.insert(uid.clone());
        if let Some((ips, _)) = self.claimed.remove(uid) {
            for ip in ips {
                // without this claim a leftover may count again, and the owner be another pod
                touched.extend(self.owner(ip).cloned());
                if let Some(claims) = self.claims.get_mut(&ip) {
                    claims.remove(uid);
                    if claims.is_empty() {
                        self.claims.remove(&ip);
                    }
                }
                touched.extend(self.owner(ip).cloned());
            }
        }
        if let Some((ips, rank)) = claim {
            for ip in &ips {
                touched.extend(self.owner(*ip).cloned());
                let claims = self.claims.entry(*ip).or_default();
                claims.insert(uid.clone(), rank);
                // a leftover may count less now, and a third pod have the address
                touched.extend(self.owner(*ip).cloned());
            }
            self.claimed.insert(uid.clone(), (ips, rank));
        }
        touched
    }

    /// What a pod claims.
    pub(crate) fn claim_of(&self, uid: &PodUid) -> Option<(Vec<IpAddr>, Rank)> {
        self.claimed.get(uid).cloned()
    }

    /// The pod an address belongs to.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<&PodUid> {
        let claims = self.claims.get(&ip)?;
        let reported = claims.values().filter_map(|rank| match rank {
            Rank::Status(reported, _) => Some(*reported),
            Rank::Sandbox { reported, .. } => *reported,
            Rank::Recovered(_) => None,
        });
        let reported = reported.max().unwrap_or_default();
        let leftover = |rank: &Rank| match rank {
            Rank::Sandbox {
                written,
                reported: None,
                ..
            } => *written < reported,
            _ => false,
        };
        let valid = claims.iter().filter(|(_, rank)| !leftover(rank));
        let newest = valid.max_by_key(|(uid, rank)| (**rank, *uid));
        newest.map(|(uid, _)| uid)
    }

    fn take(&mut self, id: &SandboxId) -> Option<Sandbox> {
        let (sandbox, arrival) = self.sandboxes.remove(id)?;
        if let Some(of_pod) = self.of_pod.get_mut(&sandbox.uid) {
            of_pod.remove(&(sandbox.written, arrival, id.clone()));
            if of_pod.is_empty() {
                self.of_pod.remove(&sandbox.uid);
            }
        }
        Some(sandbox)
    }

    fn record_ended(&mut self, sandbox: &Sandbox) {
        let living = self.of_pod.get(&sandbox.uid).into_iter().flatten();
        let living: BTreeSet<IpAddr> = living
            .filter_map(|(_, _, id)| self.sandboxes.get(id))
            .flat_map(|(other, _)| other.ips.iter().copied())
            .collect();
        let gone = sandbox.ips.iter().filter(|ip| !living.contains(ip));
        self.ended
            .entry(sandbox.uid.clone())
            .or_default()
            .extend(gone);
    }
}

/// Returns one address per family, in order: the first that is `preferred`, else the first.
fn one_per_family(ips: &[IpAddr], preferred: impl Fn(&IpAddr) -> bool) -> Vec<IpAddr> {
    let chosen = |family: bool| {
        let mut of_family = ips.iter().filter(move |ip| ip.is_ipv4() == family);
        let first = of_family.clone().next();
        of_family.find(|ip| preferred(ip)).or(first)
    };
    let chosen = [chosen(true), chosen(false)];
    let mut all = ips.to_vec();
    all.retain(|ip| chosen.contains(&Some(ip)));
    all
}
