//! The first state after a start: what the kernel and the keeper still have.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{LeasedPort, Mapping, PortKey};

use super::{Config, Kernel, NodeState, PodState};
use crate::action::Closed;
use crate::kernel::port_of;
use crate::ports::key_of;

/// What was found at the start, before the API server was asked anything.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Our rules in the kernel, as the chosen backend has them.
    pub mappings: BTreeSet<Mapping>,
    /// Our mappings in the rules of other backends than the chosen one: wanted too, but not in the
    /// kernel state that plans start from.
    pub in_other_backends: BTreeSet<Mapping>,
    /// Whether the chains around the rules are complete.
    pub intact: bool,
    /// The addresses at which mappings answer; empty: not known.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Where forwarded packets reach no pod.
    pub closed: Closed,
    /// What the keeper holds.
    pub held: BTreeSet<PortKey>,
}

impl NodeState {
    /// Continues where an earlier enforcer stopped. Every rule names its pod, so every lease is
    /// known again. A held port without a rule cools down, because its pod may be gone; a pod whose
    /// own result names such a port gets it back.
    #[must_use]
    pub fn recover(config: Config, seed: u64, now: Duration, found: Recovered) -> Self {
        let mut state = Self::new(config, seed);
        state.kernel = Kernel::new(found.mappings.clone(), found.intact);
        state.kernel.set_closed(found.closed);
        state.hosts.found(found.host_addresses);
        // the chosen backend comes first, so it wins where the two contradict each other
        for mapping in found.mappings.into_iter().chain(found.in_other_backends) {
            let lease = LeasedPort {
                protocol: mapping.protocol,
                host_port: mapping.host_port,
                container_port: mapping.container_port,
                host_ip: mapping.host_ip,
            };
            let (key, uid) = (key_of(&lease), mapping.owner.clone());
            let held = found.held.contains(&key);
            let fresh = state.ports.recover_lease(&uid, lease, held);
            // two pods cannot have one host port: the first keeps it, the other's rule is removed
            if !fresh && state.ports.owner(key) != Some((&uid, lease)) {
                continue;
            }
            let seq = state.arrival();
            let pod = state.pods.entry(uid).or_insert_with(|| PodState::new(seq));
            // snapshots before 0.1.0 made one for each address of the pod's interface; of these the
            // first stays
            let family = mapping.pod_ip.is_ipv4();
            let mut same_lease = pod.recovered.iter().filter(|other| port_of(other) == key);
            if same_lease.all(|other| other.pod_ip.is_ipv4() != family) {
                pod.recovered.insert(mapping);
                pod.unmapped.vouched = true;
            }
        }
        for key in found.held {
            let ruled = state.kernel.is_ruled(key);
            let cooldown = state.config.cooldown;
            state.ports.recover_hold(now, key, cooldown, ruled);
        }
        state.mark_all();
        state.converge(now);
        state
    }
}
