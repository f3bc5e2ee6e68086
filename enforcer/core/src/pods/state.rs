//! One pod: what the API says of it, what it asks for, and the rules that it needs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{InvalidRequest, LeasedPort, Mapping, PodUid, PortKey, RequestedPort};

use super::contest::{Contest, contested};
use super::facts::{PodFacts, Want};
use super::forgery::Forgery;
use super::unmapped::{Confirmation, Refusal, Unmapped};
use super::writes::Publish;
use crate::action::{Condition, EventKind};
use crate::limiter::{Allowance, Limiter};
use crate::ports::{StaticPort, key_of};
use crate::sandbox::AddressSource;

/// How far ports and kernel are with a pod.
pub(crate) struct Progress<'a> {
    /// The pod's ports.
    pub(crate) leases: &'a BTreeSet<LeasedPort>,
    /// Whether every requested port is leased and bound.
    pub(crate) held: bool,
    /// Whether the pod owns each address that its ports need.
    pub(crate) owned: bool,
    /// Whether every rule that the pod needs is in the kernel.
    pub(crate) ruled: bool,
    /// The node's address.
    pub(crate) host_ip: Option<IpAddr>,
    /// The first address that the API names for the node.
    pub(crate) node_ip: Option<IpAddr>,
}

/// One pod in the state machine.
#[derive(Clone, Debug)]
pub(crate) struct PodState {
    /// When the pod was first seen, as a count: the oldest pod is served first.
    pub(crate) seq: u64,
    /// None: found in the kernel, not yet seen in the API.
    pub(crate) facts: Option<PodFacts>,
    pub(crate) want: Want,
    /// The static host ports that it has on the node.
    pub(crate) static_ports: BTreeSet<StaticPort>,
    /// A static port beyond the limits whose number stays with its lease: the last that an event named.
    pub(crate) refused_static: Option<PortKey>,
    /// What is wrong with the annotation, while the last valid request still counts.
    pub(crate) typo: Option<InvalidRequest>,
    /// When the API first named its addresses: since the Unix epoch, and as a count.
    pub(crate) addressed: (Duration, u64),
    /// The rules found at the start; wanted until the API shows the pod.
    pub(crate) recovered: BTreeSet<Mapping>,
    pub(crate) refusal: Option<Refusal>,
    /// A port of it that the kernel could not bind, and why.
    pub(crate) hold_failure: Option<(PortKey, String)>,
    /// Its addresses, and where they come from.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) source: AddressSource,
    pub(crate) publish: Publish,
    /// Shown last, in a version that a write of ours has replaced.
    pub(crate) outdated: Option<Box<PodFacts>>,
    pub(crate) forgery: Forgery,
    pub(crate) contest: Contest,
    pub(crate) repairs: Limiter,
    /// Of events that follow each change of the pod.
    pub(crate) allowance: Allowance,
    pub(crate) unmapped: Unmapped,
    /// The condition, True, that the API showed first: it confirms earlier ports also after a write.
    /// Until the pod has ports.
    pub(crate) confirmed_by: Option<Condition>,
    pub(crate) confirmation: Confirmation,
}

impl PodState {
    pub(crate) fn new(seq: u64) -> Self {
        Self {
            seq,
            facts: None,
            want: Want::Nothing,
            static_ports: BTreeSet::new(),
            refused_static: None,
            typo: None,
            addressed: (Duration::ZERO, seq),
            recovered: BTreeSet::new(),
            refusal: None,
            hold_failure: None,
            ips: Vec::new(),
            source: AddressSource::Nowhere,
            publish: Publish::default(),
            outdated: None,
            forgery: Forgery::default(),
            contest: Contest::default(),
            repairs: Limiter::default(),
            allowance: Allowance::default(),
            unmapped: Unmapped::default(),
            confirmed_by: None,
            confirmation: Confirmation::default(),
        }
    }

    /// Updates what the pod asks for. Returns the events to emit. `shown`: what the API showed before.
    pub(crate) fn update_want(
        &mut self,
        now: Duration,
        facts: &PodFacts,
        shown: Option<&PodFacts>,
        max_ports: usize,
    ) -> Vec<(EventKind, String)> {
        if shown.is_some_and(|shown| shown.asks_as(facts)) {
            return Vec::new();
        }
        if facts.finished {
            // thousands of pods that have ended may be on the node
            self.forgery = Forgery::default();
        }
        let before = std::mem::replace(&mut self.want, facts.want(max_ports));
        let value = |facts: &PodFacts| facts.record.annotation.clone();
        let (old, new) = (shown.and_then(value), value(facts));
        let mut events = Vec::new();
        if old != new && self.want == Want::Nothing && new.is_some() && !facts.finished {
            events.push((EventKind::NoPorts, NO_PORTS.to_owned()));
        }
        let is_result = |value: &Option<String>| {
            let value = value.as_deref().map(annotation::classify);
            value == Some(Value::Result)
        };
        let asked = matches!(self.want, Want::Ports(_)) && self.want == before;
        if asked && is_result(&old) && !is_result(&new) && self.contest.reset(now) {
            events.push((EventKind::AnnotationContested, contested(facts)));
        }
        self.keep_last_request(before, facts, shown.is_none(), max_ports);
        events
    }

    /// A text that is not a valid request changes nothing: a typo must not cut a live mapping.
    /// `first`: the API shows the pod for the first time, and its mark is the last valid request.
    fn keep_last_request(&mut self, before: Want, facts: &PodFacts, first: bool, max_ports: usize) {
        self.typo = None;
        let Want::Invalid(typo) = &self.want else {
            return;
        };
        let last = match before {
            Want::Ports(request) => Some(request),
            _ if first => facts.marked(max_ports),
            _ => None,
        };
        if let Some(last) = last.filter(|request| !request.ports.is_empty()) {
            self.typo = Some(typo.clone());
            self.want = Want::Ports(last);
        }
    }

    /// Whether the API shows the pod, in this namespace.
    pub(crate) fn is_in(&self, namespace: &str) -> bool {
        let facts = self.facts.as_ref();
        facts.is_some_and(|facts| facts.pod.namespace == namespace)
    }

    /// How many host ports the pod asks for, static ones left out.
    pub(crate) fn requested(&self) -> usize {
        let ports = self.want.ports().iter();
        ports.filter(|port| port.static_host_port.is_none()).count()
    }

    /// The ports still to be allocated: asked for, not static, not leased.
    pub(super) fn unleased(
        &self,
        leases: &BTreeSet<LeasedPort>,
    ) -> impl Iterator<Item = &RequestedPort> {
        let served = |port: &RequestedPort| leases.iter().any(|lease| serves(lease, port));
        let ports = self.want.ports().iter();
        ports.filter(move |port| port.static_host_port.is_none() && !served(port))
    }

    /// Whether a port is still to be allocated.
    pub(crate) fn lacks_ports(&self, leases: &BTreeSet<LeasedPort>) -> bool {
        self.unleased(leases).next().is_some()
    }

    /// The leases that the pod does not ask for any more. After a crash between two changes of the
    /// rules a port may have two of them: the one that the result in the API names stays.
    pub(crate) fn surplus(&self, leases: &BTreeSet<LeasedPort>) -> Vec<LeasedPort> {
        let record = self.facts.as_ref().map(|facts| &facts.record);
        let result = record.and_then(|record| annotation::decode(record.annotation.as_deref()?));
        let named = |lease: &&LeasedPort| {
            let mut entries = result.iter().flatten();
            entries.any(|entry| entry.host_port == lease.host_port.get())
        };
        let ports = self.want.ports().iter();
        let kept = ports
            .filter(|port| port.static_host_port.is_none())
            .filter_map(|port| {
                let serving = leases.iter().filter(|lease| serves(lease, port));
                serving.clone().find(named).or(serving.clone().next())
            });
        let kept: BTreeSet<LeasedPort> = kept.copied().collect();
        leases.difference(&kept).copied().collect()
    }

    /// The rules that were found at the start and whose ports the pod still has.
    pub(crate) fn recovered(&self, leases: &BTreeSet<LeasedPort>) -> BTreeSet<Mapping> {
        let kept = |mapping: &&Mapping| {
            let key = (mapping.protocol, mapping.host_port);
            leases.iter().any(|lease| key_of(lease) == key)
        };
        self.recovered.iter().filter(kept).cloned().collect()
    }

    /// Whether the API names this address for the pod. Before the API has shown the pod, rules from
    /// before a restart say what it named.
    pub(crate) fn is_reported_at(&self, ip: IpAddr, leases: &BTreeSet<LeasedPort>) -> bool {
        match &self.facts {
            Some(facts) => facts.pod_ips.contains(&ip),
            None => self.recovered(leases).iter().any(|rule| rule.pod_ip == ip),
        }
    }

    /// The rules that this pod needs at the addresses it owns. A rule that exists stays while its
    /// port is asked for again.
    pub(crate) fn desired(
        &self,
        uid: &PodUid,
        progress: &Progress<'_>,
        owns: impl Fn(IpAddr) -> bool,
        present: &BTreeSet<Mapping>,
    ) -> BTreeSet<Mapping> {
        let mut recovered = self.recovered(progress.leases);
        match &self.facts {
            Some(facts) if facts.spec.host_network => return BTreeSet::new(),
            None if self.ips.is_empty() => {
                recovered.retain(|mapping| owns(mapping.pod_ip));
                return recovered;
            }
            Some(_) | None => {}
        }
        let exists = |mapping: &Mapping| present.contains(mapping) || recovered.contains(mapping);
        let ips = self.ips.iter().copied().filter(|ip| owns(*ip));
        let mappings = ips.flat_map(|pod_ip| {
            let leases = progress.leases.iter();
            leases.filter_map(move |lease| translate(lease, pod_ip, uid))
        });
        let wanted = mappings.filter(|mapping| progress.held || exists(mapping));
        wanted.collect()
    }

    /// A lease that no address of the pod can serve: the pod, the hostIP or the node lacks the other's
    /// address family.
    pub(crate) fn unservable(
        &self,
        leases: &BTreeSet<LeasedPort>,
        has_family: impl Fn(IpAddr) -> bool,
    ) -> Option<LeasedPort> {
        let served = |lease: &LeasedPort| {
            let mut usable = self.ips.iter().filter(|ip| has_family(**ip));
            usable.any(|ip| same_family(lease, *ip))
        };
        let known = !self.ips.is_empty();
        leases.iter().find(|lease| known && !served(lease)).copied()
    }

    /// When this pod is to be processed again, if no event comes before.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        // once the pod is refused, the doubt is in the condition
        let doubt = self.unmapped_until().filter(|_| self.refusal.is_none());
        let all = [
            self.repairs.next(),
            self.forgery.events.next(),
            self.publish.next_deadline(),
            self.contest.restore_at,
            self.confirmation.next_deadline(),
            doubt,
        ];
        all.into_iter().flatten().min()
    }

    /// Whether the pod is refused for this reason.
    pub(crate) fn is_refused(&self, kind: EventKind) -> bool {
        let refusal = self.refusal.as_ref();
        refusal.is_some_and(|refusal| refusal.kind == kind)
    }

    /// Removes a refusal of one kind and leaves others.
    pub(crate) fn clear_refusal(&mut self, kind: EventKind) {
        self.refusal.take_if(|refusal| refusal.kind == kind);
    }
}

/// The note of `NoPorts`.
const NO_PORTS: &str = "no container of the pod declares a port, so nothing is mapped: declare \
                        ports in a container, or list the ports in the annotation";

/// Whether a lease is what a requested port asks for.
pub(super) fn serves(lease: &LeasedPort, port: &RequestedPort) -> bool {
    (lease.container_port, lease.protocol, lease.host_ip)
        == (port.container_port, port.protocol, port.host_ip)
}

pub(super) fn same_family(lease: &LeasedPort, ip: IpAddr) -> bool {
    let host_ip = lease.host_ip;
    host_ip.is_none_or(|host_ip| host_ip.is_ipv4() == ip.is_ipv4())
}

fn translate(lease: &LeasedPort, pod_ip: IpAddr, owner: &PodUid) -> Option<Mapping> {
    same_family(lease, pod_ip).then(|| Mapping {
        protocol: lease.protocol,
        host_port: lease.host_port,
        host_ip: lease.host_ip,
        pod_ip,
        container_port: lease.container_port,
        owner: owner.clone(),
    })
}
