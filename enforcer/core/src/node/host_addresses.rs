//! The addresses of the node at which mappings answer, and the leases that need others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::LeasedPort;

use super::NodeState;

impl NodeState {
    /// Mappings answer at these addresses of the node.
    pub fn host_addresses_read(&mut self, now: Duration, addresses: BTreeSet<IpAddr>) {
        if self.host_addresses.as_ref() != Some(&addresses) {
            self.host_addresses = Some(addresses);
            self.mark_all();
            self.converge(now);
        }
    }

    /// Whether mappings answer at the address.
    pub(super) fn is_host_address(&self, ip: IpAddr) -> bool {
        let known = self.host_addresses.as_ref();
        known.is_none_or(|addresses| addresses.contains(&ip))
    }

    /// Why a lease cannot be mapped at the addresses of this node, if one cannot.
    pub(super) fn without_host_address(&self, leases: &BTreeSet<LeasedPort>) -> Option<String> {
        let known = self.host_addresses.as_ref()?;
        let missing = |lease: &&LeasedPort| match lease.host_ip {
            Some(ip) => !known.contains(&ip),
            None => known.is_empty(),
        };
        let lease = leases.iter().find(missing)?;
        let (port, protocol) = (lease.container_port, lease.protocol);
        let known: Vec<String> = known.iter().map(IpAddr::to_string).collect();
        Some(match lease.host_ip {
            Some(ip) if !known.is_empty() => format!(
                "container port {port}/{protocol} cannot be mapped: hostIP {ip} is no host address \
                 of this node; it has {}",
                known.join(", ")
            ),
            _ => format!(
                "container port {port}/{protocol} cannot be mapped: this node has no host address; \
                 see --host-addresses of the enforcer"
            ),
        })
    }
}
