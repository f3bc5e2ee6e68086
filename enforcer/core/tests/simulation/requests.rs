//! Rules, results and refusals, compared with what each pod asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_enforcer_core::{Condition, PodFacts};
use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{
    HostPort, InvalidRequest, Mapping, PodUid, PortRequest, Protocol, RequestedPort, ResultEntry,
};

use crate::reference::Reference;
use crate::world::{World, config};

/// What the pods ask for: what their text says, or the last valid text before it.
#[derive(Default)]
pub(crate) struct Requests(BTreeMap<PodUid, PortRequest>);

impl Requests {
    /// `first`: no version of the pod was shown before, and its mark is the last valid request.
    pub(crate) fn shown(&mut self, facts: &PodFacts, first: bool) {
        let request = match asked(facts) {
            Some(Ok(request)) => Some(request),
            Some(Err(_)) if first => marked(facts),
            Some(Err(_)) => return,
            None => None,
        };
        match request.filter(|request| !request.ports.is_empty()) {
            Some(request) => self.0.insert(facts.pod.uid.clone(), request),
            None => self.0.remove(&facts.pod.uid),
        };
    }

    pub(crate) fn gone(&mut self, uid: &PodUid) {
        self.0.remove(uid);
    }

    /// All ports that the pod asks for.
    fn of(&self, uid: &PodUid) -> &[RequestedPort] {
        self.0.get(uid).map_or(&[], |request| &request.ports)
    }

    /// Those that are mapped.
    pub(crate) fn mapped(&self, uid: &PodUid) -> impl Iterator<Item = &RequestedPort> {
        let ports = self.of(uid).iter();
        ports.filter(|port| port.static_host_port.is_none())
    }
}

/// What the text of the pod asks for; None: for nothing.
fn asked(facts: &PodFacts) -> Option<Result<PortRequest, InvalidRequest>> {
    let value = facts.record.annotation.as_deref();
    let value = value.filter(|_| !facts.finished)?;
    let published = annotation::classify(value) == Value::Result;
    Some(match marked(facts).filter(|_| published) {
        Some(request) => Ok(request),
        None => PortRequest::resolve(value, &facts.spec, config().max_ports),
    })
}

fn marked(facts: &PodFacts) -> Option<PortRequest> {
    let mark = facts.record.mark.as_deref()?;
    PortRequest::from_mark(mark, &facts.spec, config().max_ports).ok()
}

impl Reference {
    /// Whether the pod asks for this rule, or had it at the start and is not shown yet.
    pub(crate) fn is_requested(&self, rule: &Mapping) -> bool {
        let mut requested = self.requests.mapped(&rule.owner);
        let port = (rule.protocol, rule.container_port, rule.host_ip);
        match self.facts(&rule.owner) {
            Some(_) => {
                requested.any(|asked| (asked.protocol, asked.container_port, asked.host_ip) == port)
            }
            None => self.recovered.iter().any(|found| {
                (&found.owner, found.host_port) == (&rule.owner, rule.host_port)
                    && (found.protocol, found.container_port, found.host_ip) == port
            }),
        }
    }

    /// Whether these are the ports that the pod asks for, in that order.
    pub(crate) fn is_result(&self, uid: &PodUid, entries: &[ResultEntry]) -> bool {
        let asked = self.requests.of(uid);
        let name = self.facts(uid).map(|facts| &facts.pod.name);
        let same = |(port, entry): (&RequestedPort, &ResultEntry)| {
            let host_ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            let host_port = port.static_host_port.map(HostPort::get);
            (port.protocol, port.container_port.get()) == (entry.protocol, entry.container_port)
                && entry.host_ip == host_ip
                && host_port.is_none_or(|host_port| host_port == entry.host_port)
                && Some(&entry.pod_name) == name
        };
        asked.len() == entries.len() && asked.iter().zip(entries).all(same)
    }

    /// Whether the pod is not mapped for this reason. What is in the way of its ports is not looked at.
    pub(crate) fn is_refused(&self, uid: &PodUid, reason: &str) -> bool {
        let there = |port: &RequestedPort| {
            let hosts = self.host_addresses.as_ref();
            let ip = port.host_ip;
            ip.is_none_or(|ip| hosts.is_none_or(|hosts| hosts.contains(&ip)))
        };
        match reason {
            "InvalidRequest" => {
                let invalid = self
                    .facts(uid)
                    .and_then(asked)
                    .is_some_and(|it| it.is_err());
                invalid && self.requests.of(uid).is_empty()
            }
            "HostIPNotOnNode" => !self.requests.mapped(uid).all(there),
            "NoFreePort" => self.requests.mapped(uid).next().is_some(),
            _ => true,
        }
    }
}

impl World {
    /// The reason that is published is true.
    pub(crate) fn check_refusal(&mut self, uid: &PodUid, version: &str, condition: &Condition) {
        // what the state machine knows
        let known = self.reference.facts(uid);
        let same = known.is_some_and(|facts| facts.version == version);
        let reason = condition.reason.as_str();
        if same && !self.restoring && !self.reference.is_refused(uid, reason) {
            self.broken = Some(format!("{uid} is refused without reason: {condition:?}"));
        }
    }

    /// Whether a pod that is refused in the end is refused rightly: then no port rests, and the node has
    /// its own addresses.
    pub(crate) fn is_refused_rightly(&self, uid: &PodUid, reason: &str) -> bool {
        let lacks = |protocol: Protocol| {
            let ports = self.reference.requests.mapped(uid);
            let needed = ports.filter(|port| port.protocol == protocol).count();
            let own = self.leases(uid).into_iter();
            let own = own.filter(|lease| lease.protocol == protocol).count();
            needed - own > self.free(protocol)
        };
        self.reference.is_refused(uid, reason)
            && (reason != "NoFreePort" || Protocol::ALL.into_iter().any(lacks))
    }

    /// How many ports no pod has or claims.
    fn free(&self, protocol: Protocol) -> usize {
        let living = self.pods.values().filter(|facts| !facts.finished);
        let containers = living.flat_map(|facts| facts.spec.lasting_containers());
        let declared = containers.flat_map(|container| &container.ports);
        let declared = declared.filter(|port| port.protocol == protocol.as_str());
        let claimed: BTreeSet<i64> = declared.map(|port| port.host_port).collect();
        let range = config().range.ports();
        let usable = range.filter(|port| !config().excluded.contains(*port));
        let free = usable.filter(|port| {
            !self.keeper.contains(&(protocol, *port)) && !claimed.contains(&i64::from(port.get()))
        });
        free.count()
    }

    /// Whether a mapped pod has exactly the rules that its request needs at its addresses, each port with
    /// one number.
    pub(crate) fn has_all_rules(&self, facts: &PodFacts) -> bool {
        let uid = &facts.pod.uid;
        let own: BTreeSet<&Mapping> = self.kernel.iter().filter(|m| m.owner == *uid).collect();
        let mut needed = 0;
        for port in self.reference.requests.mapped(uid) {
            let served = |ip: &&IpAddr| {
                let host_ip = port.host_ip;
                host_ip.is_none_or(|host_ip| host_ip.is_ipv4() == ip.is_ipv4())
            };
            let same = |rule: &&&Mapping| {
                (rule.protocol, rule.container_port, rule.host_ip)
                    == (port.protocol, port.container_port, port.host_ip)
            };
            let rules: Vec<&&Mapping> = own.iter().filter(same).collect();
            let numbers: BTreeSet<HostPort> = rules.iter().map(|rule| rule.host_port).collect();
            let mut ips = facts.pod_ips.iter().filter(served);
            needed += rules.len();
            if numbers.len() != 1
                || rules.len() != ips.clone().count()
                || !ips.all(|ip| rules.iter().any(|rule| rule.pod_ip == *ip))
            {
                return false;
            }
        }
        needed == own.len()
    }
}
