//! Static host ports: the `hostPort` fields of pod specs, and all ports of `hostNetwork` pods.
//! The CNI plugins or the processes themselves serve them; this crate only keeps away from them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portmapping_shared::{HostPort, LeasedPort, PodSpec, PortKey};

/// A host port that a pod's spec claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StaticPort {
    pub(crate) key: PortKey,
    /// The only node address it claims; None for all.
    pub(crate) host_ip: Option<IpAddr>,
}

impl StaticPort {
    /// Whether a lease of this number answers at an address where this port must answer.
    pub(crate) fn conflicts_with(&self, lease: &LeasedPort) -> bool {
        let (claimed, leased) = (self.host_ip, lease.host_ip);
        claimed.is_none() || leased.is_none() || claimed == leased
    }
}

/// Every host port that the spec claims.
pub(crate) fn static_ports(spec: &PodSpec) -> BTreeSet<StaticPort> {
    let containers = spec.containers.iter().chain(&spec.init_containers);
    let ports = containers.flat_map(|container| &container.ports);
    let claimed = ports.filter_map(|port| {
        let number = if spec.host_network {
            port.container_port
        } else {
            port.host_port
        };
        let protocol = match port.protocol.as_str() {
            "" => "TCP",
            named => named,
        };
        let host_ip: Option<IpAddr> = port
            .host_ip
            .parse()
            .ok()
            .map(|ip: IpAddr| ip.to_canonical());
        Some(StaticPort {
            key: (protocol.parse().ok()?, HostPort::try_from(number).ok()?),
            // 0.0.0.0 and :: are every address
            host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
        })
    });
    claimed.collect()
}
