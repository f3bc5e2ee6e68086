//! The state as `/state` and the metrics show it.

use std::net::IpAddr;

use portmapping_shared::{LeasedPort, PodUid, Protocol};

use super::{NodeState, PodState, Want};
use crate::phase::Phase;
use crate::sandbox::AddressSource;

/// Everything that is known at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// One line per pod that asks for ports or has some.
    pub pods: Vec<PodStatus>,
    /// The numbers.
    pub counts: Counts,
}

/// Counts of the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Pods that ask for ports or have some.
    pub pods: usize,
    /// Those that cannot be mapped now.
    pub refused: usize,
    /// Rules in the kernel, as far as is known.
    pub mappings: usize,
    /// Those of them that lead to an IPv6 address.
    pub ipv6_mappings: usize,
    /// Ports cooling down.
    pub cooling: usize,
    /// Ports in quarantine.
    pub quarantined: usize,
    /// Free ports per protocol.
    pub free: Vec<(Protocol, usize)>,
    /// Why the kernel refuses changes, if it does.
    pub dataplane_error: Option<String>,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    /// Its uid.
    pub uid: PodUid,
    /// `namespace/name`; empty before the API shows the pod.
    pub name: String,
    /// How far it is on its way to being mapped.
    pub phase: Phase,
    /// Its addresses, the first one first.
    pub ips: Vec<IpAddr>,
    /// Where they come from.
    pub source: AddressSource,
    /// Its host ports.
    pub lease: Vec<LeasedPort>,
    /// Why it is not mapped, if it is not.
    pub refusal: Option<String>,
}

impl NodeState {
    /// A snapshot.
    #[must_use]
    pub fn status(&self) -> Status {
        let pods = self.concerned().map(|(uid, pod)| PodStatus {
            uid: uid.clone(),
            name: self
                .facts(uid)
                .map_or_else(String::new, |facts| facts.pod.to_string()),
            phase: pod.phase(&self.progress(uid)),
            ips: pod.ips.clone(),
            source: pod.source.clone(),
            lease: self.ports.leases(uid).iter().copied().collect(),
            refusal: pod.refusal.as_ref().map(|refusal| refusal.message.clone()),
        });
        Status {
            pods: pods.collect(),
            counts: self.counts(),
        }
    }

    /// The numbers of the snapshot, which cost less than the whole.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let refused = self.concerned().filter(|(_, pod)| pod.refusal.is_some());
        let (cooling, quarantined) = self.ports.resting_and_quarantined();
        let free = Protocol::ALL.map(|protocol| (protocol, self.ports.free(protocol)));
        Counts {
            pods: self.concerned().count(),
            refused: refused.count(),
            mappings: self.kernel.len(),
            ipv6_mappings: self.kernel.ipv6_len(),
            cooling,
            quarantined,
            free: free.to_vec(),
            dataplane_error: self.kernel.error().map(str::to_owned),
        }
    }

    /// Pods that ask for ports or have some.
    fn concerned(&self) -> impl Iterator<Item = (&PodUid, &PodState)> {
        let leases = |uid| self.ports.leases(uid);
        let all = self.pods.iter();
        all.filter(move |(uid, pod)| pod.want != Want::Nothing || !leases(uid).is_empty())
    }
}
