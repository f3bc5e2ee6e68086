//! The ports that a pod asks for: what the user wrote, resolved against the pod's spec.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::annotation::{self, Value};
use crate::ask::{Ask, AskedPort, InvalidRequest, PortOrName, RequestError};
use crate::pod::{DeclaredPort, PodSpec};
use crate::port::{ContainerPort, HostPort, Protocol};

/// Declared ports that a request is resolved against; many times more than a pod may ask for.
pub const MAX_DECLARED: usize = 4_096;
/// Declared ports that are tried as an example; each is held against all of them.
const MAX_TRIED: usize = 8;

/// One port that a pod asks for, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestedPort {
    /// Port in the pod.
    pub container_port: ContainerPort,
    /// Transport protocol.
    pub protocol: Protocol,
    /// The only node address that answers; None for all.
    pub host_ip: Option<IpAddr>,
    /// Name of the port in the spec, if it has one.
    pub name: Option<String>,
    /// The host port that the spec sets, by an explicit `hostPort` or by hostNetwork. The result lists
    /// it; the enforcer neither allocates nor translates it.
    pub static_host_port: Option<HostPort>,
}

/// All ports a pod asks for, in the order of its result. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRequest {
    /// At most one entry per (container port, protocol).
    pub ports: Vec<RequestedPort>,
}

impl PortRequest {
    /// Resolves the value of the annotation against the pod's spec. A result in it was copied from
    /// another pod, and means the same as `""`.
    pub fn resolve(value: &str, spec: &PodSpec, max: usize) -> Result<Self, InvalidRequest> {
        let ask = match annotation::classify(value) {
            Value::Request(ask) => Ok(ask),
            Value::Result => Ok(Ask::All),
            Value::Invalid(why) => Err(why),
        };
        let declared = DeclaredPorts::of(spec);
        ask.and_then(|ask| Self::from_ask(&ask, &declared, max))
            .map_err(|why| InvalidRequest::new(value, why, Self::what_works(&declared, max)))
    }

    /// Values that this pod can have, for a user whose value it cannot have.
    fn what_works(declared: &DeclaredPorts<'_>, max: usize) -> String {
        let works = |ask: &Ask| {
            Self::from_ask(ask, declared, max).is_ok_and(|request| !request.ports.is_empty())
        };
        let one = |port, protocol| {
            Ask::These(vec![AskedPort {
                container_port: PortOrName::Number(port),
                protocol: Some(protocol),
                host_ip: None,
            }])
        };
        let ports = declared.ports.iter();
        let ports = ports.map(|it| (it.container_port, it.protocol));
        let example =
            (9_040..=9_049).filter_map(|it| Some((ContainerPort::new(it)?, Protocol::Tcp)));
        // a port declared for two addresses cannot be asked for by number
        let mut tried = ports.take(MAX_TRIED).chain(example);
        let found = tried.find(|(port, protocol)| works(&one(*port, *protocol)));
        let (port, protocol) = found.map_or((9_040, Protocol::Tcp), |(port, it)| (port.get(), it));
        let entry = format!(r#"[{{"containerPort":{port},"protocol":"{protocol}"}}]"#);
        if works(&Ask::All) {
            format!(r#""" for every declared port, or {entry} for one"#)
        } else {
            format!("{entry}, with an entry for each port that you need")
        }
    }

    /// Reads the request mark. Where no policy is installed, a user may have written it: so it has the
    /// limits of a user's annotation, and only port numbers, protocols and host IPs count.
    pub fn from_mark(mark: &str, spec: &PodSpec, max: usize) -> Result<Self, InvalidRequest> {
        let declared = DeclaredPorts::of(spec);
        let read = || {
            if mark.len() > crate::contract::MAX_REQUEST_BYTES {
                return Err(RequestError::TooLong(mark.len()));
            }
            let ports: Vec<MarkedPort> = serde_json::from_str(mark)
                .map_err(|error| RequestError::Syntax(error.to_string()))?;
            Self::from_marked(&ports, &declared, max)
        };
        read().map_err(|why| InvalidRequest::new(mark, why, Self::what_works(&declared, max)))
    }

    /// Resolves a mark, whose every entry means one declared port. An ask by number may mean several,
    /// where two containers declare the same port for different addresses.
    fn from_marked(
        ports: &[MarkedPort],
        declared: &DeclaredPorts<'_>,
        max: usize,
    ) -> Result<Self, RequestError> {
        let mut marked = Vec::new();
        for port in ports {
            let host_ip = port.host_ip.map(|ip| ip.to_canonical());
            let same = declared.of_number(port.container_port, Some(port.protocol));
            let (place, mut found) = same
                .min_by_key(|(_, it)| {
                    let name = it.name.as_deref().unwrap_or_default();
                    (name != port.name, it.host_ip != host_ip)
                })
                .map_or_else(
                    || {
                        (
                            declared.ports.len(),
                            undeclared(port.container_port, port.protocol, declared.spec),
                        )
                    },
                    |(index, it)| (index, it.clone()),
                );
            if found.static_host_port.is_none() || place == declared.ports.len() {
                found.host_ip = host_ip.or(found.host_ip);
            }
            marked.push((place, found));
        }
        // in the order of the spec, not of the mark
        marked.sort_by_key(|(place, _)| *place);
        let mut ports = DistinctPorts::default();
        for (_, port) in marked {
            ports.add(port)?;
        }
        ports.at_most(max)
    }

    /// Returns the value of the request mark.
    #[must_use]
    pub fn to_mark(&self) -> String {
        self.encode(|port| port.name.clone().unwrap_or_default())
    }

    /// Returns an annotation that asks for these ports: `""` if it asks for the same.
    #[must_use]
    pub fn to_annotation(&self, spec: &PodSpec) -> String {
        match Self::resolve("", spec, usize::MAX) {
            Ok(all) if all == *self => String::new(),
            _ => self.encode(|_| String::new()),
        }
    }

    fn encode(&self, name: impl Fn(&RequestedPort) -> String) -> String {
        let marked = self.ports.iter().map(|port| MarkedPort {
            container_port: port.container_port,
            protocol: port.protocol,
            host_ip: port.host_ip,
            name: name(port),
        });
        // numbers and strings with string keys: this cannot fail
        serde_json::to_string(&marked.collect::<Vec<_>>()).unwrap_or_default()
    }

    fn from_ask(ask: &Ask, declared: &DeclaredPorts<'_>, max: usize) -> Result<Self, RequestError> {
        let mut ports = DistinctPorts::default();
        match ask {
            Ask::All => {
                for port in &declared.ports {
                    ports.add(port.clone())?;
                }
            }
            Ask::These(asked) => {
                let mut others = Vec::new();
                let mut wanted = BTreeMap::new();
                let mut seen = BTreeSet::new();
                for port in asked {
                    // a repeated entry changes nothing
                    if !seen.insert(port) {
                        continue;
                    }
                    let found = declared.matching(port);
                    match (&port.container_port, found.is_empty()) {
                        (PortOrName::Name(name), true) => {
                            return Err(RequestError::UnknownName {
                                name: name.clone(),
                                protocol: port.protocol,
                            });
                        }
                        (PortOrName::Number(number), true) => {
                            let protocol = port.protocol.unwrap_or(Protocol::Tcp);
                            others.push(RequestedPort {
                                host_ip: port.host_ip,
                                ..undeclared(*number, protocol, declared.spec)
                            });
                        }
                        (_, false) => {
                            for (index, found) in found {
                                select(wanted.entry(index), found, port.host_ip)?;
                            }
                        }
                    }
                }
                // in the order of the spec, not of the ask
                for port in wanted.into_values().chain(others) {
                    ports.add(port)?;
                }
            }
        }
        ports.at_most(max)
    }
}

/// The declared ports of a pod, in the order of its spec, found by number and by name: both what is declared and what
/// is asked for may be thousands.
struct DeclaredPorts<'a> {
    spec: &'a PodSpec,
    ports: Vec<RequestedPort>,
    by_number: BTreeMap<(ContainerPort, Protocol), Vec<usize>>,
    by_name: BTreeMap<String, Vec<usize>>,
}

impl<'a> DeclaredPorts<'a> {
    fn of(spec: &'a PodSpec) -> Self {
        let ports: Vec<RequestedPort> = declared_ports(spec).take(MAX_DECLARED).collect();
        let mut by_number = BTreeMap::<_, Vec<usize>>::new();
        let mut by_name = BTreeMap::<String, Vec<usize>>::new();
        for (index, port) in ports.iter().enumerate() {
            let number = (port.container_port, port.protocol);
            by_number.entry(number).or_default().push(index);
            if let Some(name) = &port.name {
                by_name.entry(name.clone()).or_default().push(index);
            }
        }
        Self {
            spec,
            ports,
            by_number,
            by_name,
        }
    }

    /// Returns the ports of a number; without a protocol, those of all.
    fn of_number(
        &self,
        port: ContainerPort,
        protocol: Option<Protocol>,
    ) -> impl Iterator<Item = (usize, &RequestedPort)> {
        let protocols = Protocol::ALL.into_iter();
        let wanted = protocols.filter(move |it| protocol.is_none_or(|wanted| wanted == *it));
        let found = wanted.filter_map(move |it| self.by_number.get(&(port, it)));
        found.flatten().map(|index| (*index, &self.ports[*index]))
    }

    /// Returns the ports that an entry means; without a protocol, all of that number. A name that two
    /// containers use means the first, as in a Service's targetPort.
    fn matching(&self, asked: &AskedPort) -> Vec<(usize, &RequestedPort)> {
        match &asked.container_port {
            PortOrName::Number(number) => self.of_number(*number, asked.protocol).collect(),
            PortOrName::Name(name) => {
                let named = self.by_name.get(name).into_iter().flatten();
                let mut named = named.map(|index| (*index, &self.ports[*index]));
                let first = named.find(|(_, it)| asked.protocol.is_none_or(|p| p == it.protocol));
                first.into_iter().collect()
            }
        }
    }
}

/// The ports of a request, each once. They are found by key: thousands may be declared.
#[derive(Default)]
struct DistinctPorts {
    ports: Vec<RequestedPort>,
    host_ips: BTreeMap<(ContainerPort, Protocol), Option<IpAddr>>,
}

impl DistinctPorts {
    fn add(&mut self, port: RequestedPort) -> Result<(), RequestError> {
        match self.host_ips.entry((port.container_port, port.protocol)) {
            Entry::Vacant(new) => {
                new.insert(port.host_ip);
                self.ports.push(port);
                Ok(())
            }
            Entry::Occupied(twin)
                if *twin.get() == port.host_ip || port.static_host_port.is_some() =>
            {
                Ok(())
            }
            Entry::Occupied(_) => Err(RequestError::TwoHostIps(port.container_port, port.protocol)),
        }
    }

    fn at_most(self, max: usize) -> Result<PortRequest, RequestError> {
        let asked = self.ports.len();
        if asked > max {
            return Err(RequestError::TooMany { asked, max });
        }
        Ok(PortRequest { ports: self.ports })
    }
}

/// Selects a declared port; an error if it was selected before with another address.
fn select(
    slot: Entry<'_, usize, RequestedPort>,
    declared: &RequestedPort,
    host_ip: Option<IpAddr>,
) -> Result<(), RequestError> {
    let asked = host_ip.filter(|_| declared.static_host_port.is_none());
    let host_ip = asked.or(declared.host_ip);
    match slot {
        Entry::Occupied(earlier) if earlier.get().host_ip != host_ip => {
            let (port, protocol) = (declared.container_port, declared.protocol);
            Err(RequestError::TwoHostIps(port, protocol))
        }
        Entry::Occupied(_) => Ok(()),
        Entry::Vacant(slot) => {
            slot.insert(RequestedPort {
                host_ip,
                ..declared.clone()
            });
            Ok(())
        }
    }
}

/// Returns every valid declared port in the order of the spec. Invalid ones are skipped: the API
/// server refuses such a pod with a message of its own.
fn declared_ports(spec: &PodSpec) -> impl Iterator<Item = RequestedPort> {
    let declared = spec
        .lasting_containers()
        .flat_map(|container| &container.ports);
    declared.filter_map(|port| {
        let container_port = ContainerPort::try_from(port.container_port).ok()?;
        let protocol = protocol_of(port)?;
        let host_ip = port
            .host_ip
            .parse()
            .ok()
            .map(|ip: IpAddr| ip.to_canonical());
        let explicit = HostPort::try_from(port.host_port).ok();
        Some(RequestedPort {
            container_port,
            protocol,
            host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
            name: (!port.name.is_empty()).then(|| port.name.clone()),
            static_host_port: on_the_node(spec, container_port).or(explicit),
        })
    })
}

/// Returns a port that no container declares.
fn undeclared(port: ContainerPort, protocol: Protocol, spec: &PodSpec) -> RequestedPort {
    RequestedPort {
        container_port: port,
        protocol,
        host_ip: None,
        name: None,
        static_host_port: on_the_node(spec, port),
    }
}

/// Returns the protocol of a declared port; without one, the API server's default.
fn protocol_of(port: &DeclaredPort) -> Option<Protocol> {
    if port.protocol.is_empty() {
        Some(Protocol::Tcp)
    } else {
        port.protocol.parse().ok()
    }
}

/// Returns the host port of a hostNetwork pod: the same number.
fn on_the_node(spec: &PodSpec, port: ContainerPort) -> Option<HostPort> {
    spec.host_network
        .then(|| HostPort::new(port.get()))
        .flatten()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MarkedPort {
    container_port: ContainerPort,
    protocol: Protocol,
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    host_ip: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
}

#[cfg(test)]
mod tests;
