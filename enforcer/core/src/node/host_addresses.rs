//! The addresses of the node at which mappings answer, and the leases that need others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::LeasedPort;

use super::NodeState;

/// The addresses of the node.
#[derive(Debug, Default)]
pub(super) struct HostAddresses {
    /// From the pod that named them last.
    named: Vec<IpAddr>,
    /// Those at which mappings answer; None: not known yet, every hostIP is mapped.
    answering: Option<BTreeSet<IpAddr>>,
}

impl NodeState {
    /// Mappings answer at these addresses of the node. Returns whether they are others than before.
    pub fn host_addresses_read(&mut self, now: Duration, addresses: BTreeSet<IpAddr>) -> bool {
        let is_new = self.hosts.answering.as_ref() != Some(&addresses);
        if is_new {
            self.hosts.answering = Some(addresses);
            self.mark_all();
            self.converge(now);
        }
        is_new
    }
}

impl HostAddresses {
    /// A pod names these; whether that is new.
    pub(super) fn named_by_pod(&mut self, named: &[IpAddr]) -> bool {
        let is_new = !named.is_empty() && self.named != named;
        if is_new {
            self.named = named.to_vec();
        }
        is_new
    }

    /// The rules found at the start answer at these; none: not known.
    pub(super) fn found(&mut self, addresses: BTreeSet<IpAddr>) {
        self.answering = (!addresses.is_empty()).then_some(addresses);
    }

    /// Whether mappings answer at the address.
    pub(super) fn answer_at(&self, ip: IpAddr) -> bool {
        let known = self.answering.as_ref();
        known.is_none_or(|addresses| addresses.contains(&ip))
    }

    /// The first address that the API names for the node of a pod, and the first of a served family at
    /// which mappings answer. `own`: what the pod names; right after its start that is none, but the other
    /// pods name them.
    pub(super) fn of_pod(
        &self,
        own: &[IpAddr],
        serves: impl Fn(IpAddr) -> bool,
    ) -> (Option<IpAddr>, Option<IpAddr>) {
        let is_served = |ip: &&IpAddr| serves(**ip);
        let named = own.iter().chain(&self.named);
        let mut answering = named.clone().filter(|ip| self.answer_at(**ip));
        let mut others = self.answering.iter().flatten();
        let answering = answering.find(is_served).or(others.find(is_served));
        (named.clone().next().copied(), answering.copied())
    }

    /// Whether the node has an address of this one's family. Before one is known, it has each.
    pub(super) fn have_family_of(&self, ip: IpAddr) -> bool {
        let same = |host: &IpAddr| host.is_ipv4() == ip.is_ipv4();
        match &self.answering {
            Some(known) => known.iter().any(same),
            None => self.named.is_empty() || self.named.iter().any(same),
        }
    }

    /// Why a lease cannot be mapped at the addresses of this node, if one cannot.
    pub(super) fn lacking_for(&self, leases: &BTreeSet<LeasedPort>) -> Option<String> {
        let known = self.answering.as_ref()?;
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
