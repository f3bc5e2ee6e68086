//! Which addresses each pod has, and which pod owns each address.
//!
//! A pod's addresses are those of its newest living sandbox, else what the API says. An address has
//! one owner: of several pods that claim it, the one with the newest sandbox; what the API says
//! counts less than any sandbox, for it comes late and goes late. So whoever may write results on
//! the node (root) decides who owns an address, and nobody else does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::PodUid;
use portmapping_shared::pod::canonical_ip;

use crate::sandbox::{Sandbox, SandboxId};

/// Pods unknown to the API whose ended sandboxes are remembered: the watch is that late at most.
const MAX_UNKNOWN: usize = 1024;

/// What gives a claim its weight; a later variant outweighs an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// The kernel has rules to it from before a restart; the pod's arrival.
    Recovered(u64),
    /// The API said so; when it first did, counted in arrivals.
    Status(u64),
    /// A sandbox has it: when its result was written, then its arrival.
    Sandbox(Duration, u64),
}

/// Where a pod's addresses come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressSource {
    /// None are known.
    #[default]
    Nowhere,
    /// `status.podIPs` in the API.
    Status,
    /// The runtime's result for this sandbox.
    Sandbox(SandboxId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    ips: Vec<IpAddr>,
    rank: Rank,
}

/// The book of sandboxes and claims.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    sandboxes: BTreeMap<SandboxId, (Sandbox, u64)>,
    of_pod: BTreeMap<PodUid, BTreeSet<(Duration, u64, SandboxId)>>,
    /// Addresses of a pod's ended sandboxes, while the API may still name them.
    ended: BTreeMap<PodUid, BTreeSet<IpAddr>>,
    /// Pods in `ended` that the API has not spoken of, the oldest first.
    strangers: VecDeque<PodUid>,
    claims: BTreeMap<IpAddr, BTreeMap<PodUid, Rank>>,
    claimed: BTreeMap<PodUid, Claim>,
}

impl Addresses {
    /// Notes a sandbox; answers whose addresses may have changed.
    pub(crate) fn up(&mut self, mut sandbox: Sandbox, arrival: u64) -> BTreeSet<PodUid> {
        for ip in &mut sandbox.ips {
            *ip = canonical_ip(*ip);
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
        touched
    }

    /// Forgets a sandbox; answers whose it was. `known`: whether the API has spoken of a pod.
    pub(crate) fn down(
        &mut self,
        id: &SandboxId,
        known: impl Fn(&PodUid) -> bool,
    ) -> Option<PodUid> {
        let sandbox = self.take(id)?;
        self.record_ended(&sandbox);
        if !known(&sandbox.uid) && !self.strangers.contains(&sandbox.uid) {
            self.strangers.push_back(sandbox.uid.clone());
            while self.strangers.len() > MAX_UNKNOWN {
                let Some(oldest) = self.strangers.pop_front() else {
                    break;
                };
                if !known(&oldest) {
                    self.ended.remove(&oldest);
                }
            }
        }
        Some(sandbox.uid)
    }

    /// The ids of all sandboxes.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &SandboxId> {
        self.sandboxes.keys()
    }

    /// The pod's newest sandbox, with its arrival.
    pub(crate) fn newest(&self, uid: &PodUid) -> Option<(&Sandbox, u64)> {
        let (_, _, id) = self.of_pod.get(uid)?.last()?;
        self.sandboxes
            .get(id)
            .map(|(sandbox, arrival)| (sandbox, *arrival))
    }

    /// The API names these addresses: once they are others than those of ended sandboxes, it has
    /// caught up.
    pub(crate) fn api_says(&mut self, uid: &PodUid, ips: &[IpAddr]) {
        self.strangers.retain(|stranger| stranger != uid);
        if !ips.is_empty() && !ips.iter().any(|ip| self.has_ended(uid, *ip)) {
            self.ended.remove(uid);
        }
    }

    /// Whether a sandbox of this pod had the address and is gone.
    pub(crate) fn has_ended(&self, uid: &PodUid, ip: IpAddr) -> bool {
        self.ended.get(uid).is_some_and(|ended| ended.contains(&ip))
    }

    /// The pod is gone; its sandboxes may live on for a moment.
    pub(crate) fn forget(&mut self, uid: &PodUid) {
        self.ended.remove(uid);
    }

    /// Replaces what a pod claims; answers whose addresses may have changed.
    pub(crate) fn claim(
        &mut self,
        uid: &PodUid,
        claim: Option<(Vec<IpAddr>, Rank)>,
    ) -> BTreeSet<PodUid> {
        let claim = claim.map(|(ips, rank)| Claim { ips, rank });
        let mut touched = BTreeSet::new();
        if self.claimed.get(uid) == claim.as_ref() {
            return touched;
        }
        touched.insert(uid.clone());
        if let Some(old) = self.claimed.remove(uid) {
            for ip in old.ips {
                if let Some(claims) = self.claims.get_mut(&ip) {
                    claims.remove(uid);
                    if claims.is_empty() {
                        self.claims.remove(&ip);
                    }
                }
                touched.extend(self.owner(ip).cloned());
            }
        }
        if let Some(claim) = claim {
            for ip in &claim.ips {
                touched.extend(self.owner(*ip).cloned());
                let claims = self.claims.entry(*ip).or_default();
                claims.insert(uid.clone(), claim.rank);
            }
            self.claimed.insert(uid.clone(), claim);
        }
        touched
    }

    /// What a pod claims.
    pub(crate) fn claim_of(&self, uid: &PodUid) -> Option<(Vec<IpAddr>, Rank)> {
        let claim = self.claimed.get(uid)?;
        Some((claim.ips.clone(), claim.rank))
    }

    /// The pod an address belongs to.
    pub(crate) fn owner(&self, ip: IpAddr) -> Option<&PodUid> {
        let claims = self.claims.get(&ip)?;
        let newest = claims.iter().max_by_key(|(uid, rank)| (**rank, *uid));
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
