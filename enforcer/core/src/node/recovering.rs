//! The first state after a start: what the kernel and the keeper still have.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::{LeasedPort, Mapping};

use super::{Config, NodeState};
use crate::pods::state::{Hold, PodState, key};
use crate::ports::PortKey;

/// What was found at the start, before the API server was asked anything.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Our rules in the kernel, as the chosen backend has them.
    pub mappings: BTreeSet<Mapping>,
    /// Mappings of ours in the rules of another backend than the chosen one: wanted likewise, but
    /// not in the kernel state that plans build on.
    pub in_other_backends: BTreeSet<Mapping>,
    /// Whether the frame around them is whole.
    pub intact: bool,
    /// What the keeper holds.
    pub held: BTreeSet<PortKey>,
}

impl NodeState {
    /// Takes up where an earlier enforcer left off: every rule names its pod, so every lease is
    /// known again. Held ports without a rule cool down: their pod may be gone. One whose own
    /// result names such a port gets it back.
    #[must_use]
    pub fn recover(config: Config, seed: u64, now: Duration, found: Recovered) -> Self {
        let mut state = Self::new(config, seed);
        let Recovered {
            mappings,
            in_other_backends,
            intact,
            held,
        } = found;
        state.kernel.mappings = mappings.iter().cloned().collect();
        state.kernel.intact = intact;
        // what the chosen backend has counts first where the two contradict each other
        for mapping in mappings.into_iter().chain(in_other_backends) {
            let lease = LeasedPort {
                protocol: mapping.protocol,
                host_port: mapping.host_port,
                container_port: mapping.container_port,
                host_ip: mapping.host_ip,
            };
            let owner = state.owner(key(&lease));
            // two pods with one host port cannot be: the first keeps it, the other's rule goes
            if owner.is_some_and(|(uid, taken)| *uid != mapping.owner || taken != lease) {
                continue;
            }
            let seq = state.arrival();
            let uid = mapping.owner.clone();
            let pod = state
                .pods
                .entry(uid.clone())
                .or_insert_with(|| PodState::new(seq));
            pod.recovered.insert(mapping);
            let hold = if held.contains(&key(&lease)) {
                Hold::Held
            } else {
                Hold::Missing
            };
            state.begin_lease(&uid, lease, hold);
            state.pool.seize(key(&lease));
        }
        for port in held {
            if state.owner(port).is_none() {
                state.pool.seize(port);
                state.rest(now, port, state.config.cooldown);
                // rules that were flushed just before take the names of their pods along
                state.previous.lose_track(port);
            }
        }
        for uid in state.pods.keys().cloned().collect::<Vec<_>>() {
            state.update_addresses(&uid);
        }
        state.mark_all();
        state.converge(now);
        state
    }
}
