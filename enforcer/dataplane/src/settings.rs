//! What an administrator may set.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use portmapping_shared::{HostPort, PortKey, PortRange, PortSet};

use crate::host_addresses::AddressSelection;
use crate::subnet::Subnet;

/// Settings of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The host ports that may be mapped.
    pub range: PortRange,
    /// Ports of the range that are never mapped.
    pub excluded: PortSet,
    /// Subnets of pods that share a bridge whose packets pass no rules (bridge-nf-call-iptables is
    /// 0). There, a pod reaches the host port of another pod only if the connection is masqueraded.
    pub neighbours: Vec<Subnet>,
    /// Whether every connection to a mapped port is masqueraded: where replies of pods leave the node
    /// past netfilter, a client gets none otherwise. The pods then see the node's address.
    pub masquerade: bool,
    /// Which addresses of the node become host addresses.
    pub selection: AddressSelection,
    /// The addresses at which mappings answer. Packets to all other addresses are not ours.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Static host ports of pods, which are never mapped either; None while the pods are not known.
    pub static_ports: Option<BTreeSet<PortKey>>,
}

impl Settings {
    /// Returns settings with every port of the range, no neighbours, and no host addresses or
    /// static host ports that are known.
    #[must_use]
    pub fn new(range: PortRange) -> Self {
        Self {
            range,
            excluded: PortSet::default(),
            neighbours: Vec::new(),
            masquerade: false,
            selection: AddressSelection::default(),
            host_addresses: BTreeSet::new(),
            static_ports: None,
        }
    }
}

/// Returns the ports of a range that are not excluded, as spans of first and last port.
pub(crate) fn spans(range: PortRange, excluded: &PortSet) -> Vec<(HostPort, HostPort)> {
    let mut spans: Vec<(HostPort, HostPort)> = Vec::new();
    for port in range.ports().filter(|port| !excluded.contains(*port)) {
        match spans.last_mut() {
            Some((_, last)) if last.get() + 1 == port.get() => *last = port,
            _ => spans.push((port, port)),
        }
    }
    spans
}

/// Returns a span as iptables writes it.
pub(crate) fn span_text<T: Copy + PartialEq + fmt::Display>(first: T, last: T) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}:{last}")
    }
}
