//! What is known of one pod, and what follows from it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::pod::canonical_ip;
use portmapping_shared::{
    HostPort, InvalidRequest, LeasedPort, Mapping, PodRef, PodSpec, PodUid, PortRequest,
    RequestedPort,
};

use crate::action::{EventKind, Publication, Record};
use crate::addresses::AddressSource;
use crate::limiter::Limiter;
use crate::ports::PortKey;

/// A pod of this node as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// The pod.
    pub pod: PodRef,
    /// The part of its spec that decides about ports.
    pub spec: PodSpec,
    /// What the API says of its mapping.
    pub record: Record,
    /// Addresses of its sandbox as the API names them, the first one first; empty before there is
    /// one, and late.
    pub pod_ips: Vec<IpAddr>,
    /// Addresses of the node, the first one first.
    pub host_ips: Vec<IpAddr>,
    /// No container runs any more and none will.
    pub finished: bool,
    /// Somebody deleted it; what is written now reaches nobody.
    pub deleting: bool,
}

/// What a pod wants of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// No annotation, nothing declared, or no longer running.
    Nothing,
    /// These ports.
    Ports(PortRequest),
    /// An annotation nobody can grant.
    Invalid(InvalidRequest),
}

/// How a leased port stands with the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// To be asked for.
    Missing,
    /// Asked for, not answered.
    Asked,
    /// Bound.
    Held,
    /// In a stranger's hands although the pod is mapped already: asked for again later.
    Lost,
}

/// Why a pod is not mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: EventKind,
    pub(crate) message: String,
}

/// A pod whose rules the kernel refused when they were tried alone.
#[derive(Clone, Debug)]
pub(crate) struct Blocked {
    /// Not tried again before.
    pub(crate) until: Duration,
    pub(crate) failures: u32,
    pub(crate) error: String,
}

/// A host port that a pod's spec claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StaticPort {
    pub(crate) key: PortKey,
    /// The only node address it claims; None for all.
    pub(crate) host_ip: Option<IpAddr>,
}

/// One pod in the state machine.
#[derive(Clone, Debug)]
pub(crate) struct PodState {
    /// Arrival, for first come first served.
    pub(crate) seq: u64,
    /// None: recovered from the kernel, not yet seen in the API.
    pub(crate) facts: Option<PodFacts>,
    pub(crate) want: Want,
    pub(crate) lease: BTreeMap<LeasedPort, Hold>,
    /// When its addresses were last learned; of two pods with one address the later owns it.
    pub(crate) addressed: u64,
    /// What the kernel had for the pod when it was recovered; wanted until the API speaks.
    pub(crate) recovered: BTreeSet<Mapping>,
    pub(crate) refusal: Option<Refusal>,
    /// The last refusal told in an event.
    pub(crate) last_event: Option<Refusal>,
    /// Its addresses, and where they come from.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) source: AddressSource,
    pub(crate) publish: Publish,
    /// Annotations written for this pod, the latest last: old events may still show any of them.
    pub(crate) written: VecDeque<String>,
    /// The forged result that stands in the API.
    pub(crate) forged: Option<String>,
    pub(crate) repairs: Limiter,
    pub(crate) forgeries: Limiter,
    /// When it is to be looked at again, as `NodeState::wakes` has it.
    pub(crate) wake: Option<Duration>,
    /// The last result told in an event, or found in the API.
    pub(crate) announced: Option<String>,
}

/// How a pod stands with the API server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publish {
    pub(crate) in_flight: Option<Publication>,
    /// Written, not yet seen on the watch, and how long to wait for that. Events sent before our
    /// write still show the old record, and would have us write again.
    pub(crate) echo: Option<(Record, Duration)>,
    pub(crate) retry_at: Option<Duration>,
    pub(crate) failures: u32,
}

impl PodState {
    pub(crate) fn new(seq: u64) -> Self {
        Self {
            seq,
            facts: None,
            want: Want::Nothing,
            lease: BTreeMap::new(),
            addressed: seq,
            recovered: BTreeSet::new(),
            refusal: None,
            last_event: None,
            ips: Vec::new(),
            source: AddressSource::Nowhere,
            publish: Publish::default(),
            written: VecDeque::new(),
            forged: None,
            repairs: Limiter::default(),
            forgeries: Limiter::default(),
            wake: None,
            announced: None,
        }
    }

    /// The ports still to be allocated: asked for, not static, not leased yet.
    pub(crate) fn unleased(&self) -> Vec<RequestedPort> {
        let Want::Ports(request) = &self.want else {
            return Vec::new();
        };
        let leased = |port: &RequestedPort| self.lease.keys().any(|lease| serves(lease, port));
        let open = |port: &&RequestedPort| port.static_host_port.is_none() && !leased(port);
        request.ports.iter().filter(open).cloned().collect()
    }

    /// Leased ports that nobody asks for any more.
    pub(crate) fn surplus(&self) -> Vec<LeasedPort> {
        let asked = match &self.want {
            Want::Ports(request) => request.ports.as_slice(),
            Want::Nothing | Want::Invalid(_) => &[],
        };
        let wanted = |lease: &LeasedPort| {
            asked
                .iter()
                .any(|port| port.static_host_port.is_none() && serves(lease, port))
        };
        self.lease
            .keys()
            .filter(|lease| !wanted(lease))
            .copied()
            .collect()
    }

    /// Whether every leased port is bound.
    pub(crate) fn all_held(&self) -> bool {
        self.lease.values().all(|hold| *hold == Hold::Held)
    }

    /// The rules this pod needs, given the addresses it owns. A port that was bound once keeps its
    /// rule while the keeper is asked for it again.
    pub(crate) fn desired(
        &self,
        uid: &PodUid,
        owns: impl Fn(IpAddr) -> bool,
        current: &BTreeSet<Mapping>,
    ) -> BTreeSet<Mapping> {
        let spoken = self.facts.as_ref();
        if spoken.is_some_and(|facts| facts.spec.host_network) {
            return BTreeSet::new();
        }
        if spoken.is_none() && self.ips.is_empty() {
            let recovered = self.recovered.iter().filter(|m| owns(m.pod_ip));
            return recovered.cloned().collect();
        }
        let complete = self.unleased().is_empty() && self.all_held();
        let ips = self.ips.iter().copied().filter(|ip| owns(*ip));
        let mut mappings = BTreeSet::new();
        for pod_ip in ips {
            for lease in self.lease.keys() {
                let Some(mapping) = translate(lease, pod_ip, uid) else {
                    continue;
                };
                let lived = current.contains(&mapping) || self.recovered.contains(&mapping);
                if complete || lived {
                    mappings.insert(mapping);
                }
            }
        }
        mappings
    }

    /// A leased port no address of the pod can serve: of a family that the pod, the hostIP or the
    /// dataplane lacks.
    pub(crate) fn unservable(&self, ipv6: bool) -> Option<LeasedPort> {
        let served = |lease: &LeasedPort| {
            let mut usable = self.ips.iter().filter(|ip| ipv6 || ip.is_ipv4());
            usable.any(|ip| {
                lease
                    .host_ip
                    .is_none_or(|host| host.is_ipv4() == ip.is_ipv4())
            })
        };
        let known = !self.ips.is_empty();
        self.lease
            .keys()
            .find(|lease| known && !served(lease))
            .copied()
    }

    /// When this pod is to be looked at again, if nothing happens before.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let echo = self.publish.echo.as_ref().map(|(_, until)| *until);
        let limits = [self.repairs.next(), self.forgeries.next()];
        let all = [self.publish.retry_at, echo].into_iter().chain(limits);
        all.flatten().min()
    }
}

/// Whether a lease is what a requested port asks for.
pub(crate) fn serves(lease: &LeasedPort, port: &RequestedPort) -> bool {
    (lease.container_port, lease.protocol, lease.host_ip)
        == (port.container_port, port.protocol, port.host_ip)
}

/// The lease's key with the keeper.
pub(crate) fn key(lease: &LeasedPort) -> PortKey {
    (lease.protocol, lease.host_port)
}

fn translate(lease: &LeasedPort, pod_ip: IpAddr, owner: &PodUid) -> Option<Mapping> {
    let same_family = lease
        .host_ip
        .is_none_or(|host_ip| host_ip.is_ipv4() == pod_ip.is_ipv4());
    same_family.then(|| Mapping {
        protocol: lease.protocol,
        host_port: lease.host_port,
        host_ip: lease.host_ip,
        pod_ip,
        container_port: lease.container_port,
        owner: owner.clone(),
    })
}

/// What the annotation, else the mark, asks for.
pub(crate) fn want(facts: &PodFacts, max_ports: usize) -> Want {
    let Some(value) = facts
        .record
        .annotation
        .as_deref()
        .filter(|_| !facts.finished)
    else {
        return Want::Nothing;
    };
    let spec = &facts.spec;
    let marked = || PortRequest::from_mark(facts.record.mark.as_deref()?, spec, max_ports).ok();
    // once the result stands in the annotation, the mark says what was asked for
    let request = match annotation::classify(value) {
        Value::Result => match marked() {
            Some(request) => Ok(request),
            None => PortRequest::resolve(value, spec, max_ports),
        },
        Value::Request(_) | Value::Invalid(_) => PortRequest::resolve(value, spec, max_ports),
    };
    match request {
        Ok(request) if request.ports.is_empty() => Want::Nothing,
        Ok(request) => Want::Ports(request),
        Err(invalid) => Want::Invalid(invalid),
    }
}

/// Static host ports the pod's spec claims on the node.
pub(crate) fn static_ports(facts: &PodFacts) -> BTreeSet<StaticPort> {
    if facts.finished {
        return BTreeSet::new();
    }
    let all = facts
        .spec
        .containers
        .iter()
        .chain(&facts.spec.init_containers);
    let declared = all
        .flat_map(|container| &container.ports)
        .filter_map(|port| {
            let number = if facts.spec.host_network {
                port.container_port
            } else {
                port.host_port
            };
            let protocol = if port.protocol.is_empty() {
                "TCP"
            } else {
                &port.protocol
            };
            let host_ip: Option<IpAddr> = port.host_ip.parse().ok().map(canonical_ip);
            Some(StaticPort {
                key: (protocol.parse().ok()?, HostPort::try_from(number).ok()?),
                // 0.0.0.0 is every address
                host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
            })
        });
    declared.collect()
}
