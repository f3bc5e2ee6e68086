//! What `/state` and the metrics are told.

use std::net::IpAddr;

use portmapping_shared::{LeasedPort, PodUid, Protocol};

use super::NodeState;
use crate::addresses::AddressSource;
use crate::phase::Phase;
use crate::pods::state::{PodState, Want};

/// All that is known at the moment.
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
    /// Rules believed to be in the kernel.
    pub mappings: usize,
    /// Ports cooling down.
    pub cooling: usize,
    /// Ports in strangers' hands.
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
    /// `namespace/name`; empty before the API has spoken of it.
    pub name: String,
    /// How far it has come.
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
            name: pod
                .facts
                .as_ref()
                .map(|facts| facts.pod.to_string())
                .unwrap_or_default(),
            phase: phase(pod, self.kernel.intact && self.has_rules(uid)),
            ips: pod.ips.clone(),
            source: pod.source.clone(),
            lease: pod.lease.keys().copied().collect(),
            refusal: pod.refusal.as_ref().map(|refusal| refusal.message.clone()),
        });
        Status {
            pods: pods.collect(),
            counts: self.counts(),
        }
    }

    /// The snapshot's numbers, for a fraction of its price.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let refused = |(_, pod): &(&PodUid, &PodState)| pod.refusal.is_some();
        Counts {
            pods: self.concerned().count(),
            refused: self.concerned().filter(refused).count(),
            mappings: self.kernel.mappings.len(),
            cooling: self.resting().count(),
            quarantined: self.quarantined.len(),
            free: Protocol::ALL
                .map(|protocol| (protocol, self.pool.free(protocol)))
                .to_vec(),
            dataplane_error: self.kernel.error.clone(),
        }
    }

    /// Pods that ask for ports or have some.
    fn concerned(&self) -> impl Iterator<Item = (&PodUid, &PodState)> {
        let asks = |pod: &PodState| !matches!(pod.want, Want::Nothing);
        let pods = self.pods.iter();
        pods.filter(move |(_, pod)| !pod.lease.is_empty() || asks(pod))
    }
}

fn phase(pod: &PodState, programmed: bool) -> Phase {
    let Some(facts) = &pod.facts else {
        return Phase::Recovered;
    };
    let published = facts
        .record
        .condition
        .as_ref()
        .is_some_and(|condition| condition.status);
    match &pod.want {
        Want::Nothing => Phase::Idle,
        _ if pod.refusal.is_some() => Phase::Refused,
        Want::Invalid(_) => Phase::Refused,
        Want::Ports(_) if !pod.unleased().is_empty() || !pod.all_held() => Phase::Requested,
        Want::Ports(_) if pod.ips.is_empty() || !programmed => Phase::Held,
        Want::Ports(_) if !published => Phase::Programmed,
        Want::Ports(_) => Phase::Published,
    }
}
