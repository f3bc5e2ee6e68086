//! Which port a pod gets: the one it had, else a random free one.

use std::collections::BTreeSet;

use portmapping_shared::{HostPort, LeasedPort, PodRef, Protocol, RequestedPort};
use rand::Rng;

use super::{Hold, Port, PortKey, Ports};

/// A port that a pod needs.
pub(crate) struct WantedPort {
    pub(crate) port: RequestedPort,
    /// The host port that the pod's own earlier result names.
    pub(crate) previous: Option<HostPort>,
    /// Whether the pod's condition names it too.
    pub(crate) confirmed: bool,
}

/// The range has fewer free ports than a pod needs: how many, and what has the others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Exhausted(String);

impl Ports {
    /// Gives the pod every port that it wants, or none.
    pub(crate) fn allocate(
        &mut self,
        pod: &PodRef,
        wanted: &[WantedPort],
        rng: &mut impl Rng,
    ) -> Result<(), Exhausted> {
        let choices = self.choose(pod, wanted);
        for protocol in Protocol::ALL {
            let wanted = wanted
                .iter()
                .map(|wanted| wanted.port.protocol)
                .zip(&choices);
            let from_free =
                |choice: &Option<PortKey>| choice.is_none_or(|key| self.free.contains(key));
            let needed = wanted.filter(|(of, choice)| *of == protocol && from_free(choice));
            let needed = needed.count();
            if self.free(protocol) < needed {
                return Err(self.exhausted(protocol, needed));
            }
        }
        // chosen ports first, so that no random pick takes one of them
        for chosen in [true, false] {
            for (wanted, choice) in wanted.iter().zip(&choices) {
                if choice.is_some() == chosen {
                    self.lease(pod, &wanted.port, *choice, rng);
                }
            }
        }
        Ok(())
    }

    fn lease(
        &mut self,
        pod: &PodRef,
        port: &RequestedPort,
        choice: Option<PortKey>,
        rng: &mut impl Rng,
    ) {
        let picked = choice.map(|(_, host_port)| host_port);
        let Some(host_port) = picked.or_else(|| self.free.pick(port.protocol, rng)) else {
            return;
        };
        let lease = LeasedPort {
            protocol: port.protocol,
            host_port,
            container_port: port.container_port,
            host_ip: port.host_ip,
        };
        self.change((port.protocol, host_port), |state| {
            let allocated = state.allocate(&pod.uid, lease, Hold::Missing);
            allocated.or_else(|state| state.reclaim(&pod.uid, lease))
        });
    }

    /// The port that each wanted port had before, where the pod may have it again; None: any free
    /// one. No two choices are the same port.
    fn choose(&self, pod: &PodRef, wanted: &[WantedPort]) -> Vec<Option<PortKey>> {
        let mut chosen = BTreeSet::new();
        let choose = |wanted: &WantedPort| {
            let protocol = wanted.port.protocol;
            let named = wanted.previous.map(|host_port| (protocol, host_port));
            let free = named.filter(|key| self.free.contains(*key) && !chosen.contains(key));
            let key = free.or_else(|| {
                let unknown = |key: &PortKey| wanted.confirmed && self.previous.is_unknown(*key);
                let find = || {
                    self.previous
                        .find(pod, protocol, wanted.port.container_port)
                };
                let resting = named.filter(unknown).or_else(find);
                resting.filter(|key| self.is_grantable(*key) && !chosen.contains(key))
            });
            chosen.extend(key);
            key
        };
        wanted.iter().map(choose).collect()
    }

    fn exhausted(&self, protocol: Protocol, needed: usize) -> Exhausted {
        let count = |of: &dyn Fn(PortKey, &Port) -> bool| {
            let ports = self.ledger.iter().filter(|(key, _)| key.0 == protocol);
            ports.filter(|(key, port)| of(*key, port)).count()
        };
        let excluded = self
            .range
            .ports()
            .filter(|port| self.excluded.contains(*port));
        Exhausted(format!(
            "{free} {protocol} ports are free, {needed} are needed: range {range} has {size} \
             ports, {mapped} mapped, {cooling} cooling down, {quarantined} held by other \
             processes, {claimed} static hostPorts of pods, {excluded} excluded; the pod is mapped \
             when enough ports are released; a larger --range prevents this",
            free = self.free(protocol),
            range = self.range,
            size = self.range.size(),
            mapped = count(&|_, port| port.state.lease().is_some()),
            cooling = count(&|_, port| port.state.is_resting()),
            quarantined = count(&|_, port| port.state.quarantined_until().is_some()),
            claimed = count(&|(_, number), port| {
                self.range.contains(number) && !port.claims.is_empty()
            }),
            excluded = excluded.count(),
        ))
    }
}
