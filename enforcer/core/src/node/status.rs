//! What `/state` and the metrics are told.

use portmapping_shared::{LeasedPort, PodUid, Protocol};

use super::NodeState;
use crate::phase::Phase;
use crate::pod::{Tenant, Want};

/// Counts of the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// One line per pod that asks for ports or has some.
    pub pods: Vec<PodStatus>,
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
    /// Its host ports.
    pub lease: Vec<LeasedPort>,
    /// Why it is not mapped, if it is not.
    pub refusal: Option<String>,
}

impl NodeState {
    /// A snapshot.
    #[must_use]
    pub fn status(&self) -> Status {
        let desired = self.desired();
        let pods = self.tenants.iter().filter(|(_, tenant)| {
            !tenant.lease.is_empty() || !matches!(tenant.want, Want::Nothing)
        });
        let pods = pods.map(|(uid, tenant)| PodStatus {
            uid: uid.clone(),
            name: tenant
                .facts
                .as_ref()
                .map(|facts| facts.pod.to_string())
                .unwrap_or_default(),
            phase: phase(tenant, self.is_programmed(uid, &desired)),
            lease: tenant.lease.keys().copied().collect(),
            refusal: tenant
                .refusal
                .as_ref()
                .map(|refusal| refusal.message.clone()),
        });
        Status {
            pods: pods.collect(),
            mappings: self.kernel.mappings.len(),
            cooling: self.cooling.len(),
            quarantined: self.quarantined.len(),
            free: Protocol::ALL
                .map(|protocol| (protocol, self.pool.free(protocol)))
                .to_vec(),
            dataplane_error: self.kernel.error.clone(),
        }
    }
}

fn phase(tenant: &Tenant, programmed: bool) -> Phase {
    let Some(facts) = &tenant.facts else {
        return Phase::Recovered;
    };
    let published = facts
        .record
        .condition
        .as_ref()
        .is_some_and(|condition| condition.status);
    match &tenant.want {
        Want::Nothing => Phase::Idle,
        _ if tenant.refusal.is_some() => Phase::Refused,
        Want::Nonsense(_) => Phase::Refused,
        Want::Ports(_) if !tenant.unleased().is_empty() || !tenant.all_held() => Phase::Requested,
        Want::Ports(_) if facts.pod_ips.is_empty() || !programmed => Phase::Held,
        Want::Ports(_) if !published => Phase::Programmed,
        Want::Ports(_) => Phase::Published,
    }
}
