//! Which port a pod gets: the one it had, else a random free one.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::{HostPort, LeasedPort, PodRef, PortKey, Protocol, RequestedPort};
use rand::Rng;

use super::{Port, Ports};

/// A port that a pod needs.
#[derive(Clone, Debug)]
pub(crate) struct WantedPort {
    pub(crate) port: RequestedPort,
    /// The host port that the pod's own earlier result names.
    pub(crate) previous: Option<HostPort>,
    /// Whether the pod's condition names it too.
    pub(crate) confirmed: bool,
    /// The port that it had and may have again; None: any free one.
    pub(crate) matched: Option<PortKey>,
}

/// A pod that lacks ports.
#[derive(Clone, Debug)]
pub(crate) struct WaitingPod {
    pub(crate) pod: PodRef,
    /// How many ports it requests, those that it has too.
    pub(crate) requested: usize,
    /// Those that it lacks.
    pub(crate) wanted: Vec<WantedPort>,
}

/// How many ports may rest before their pod, or namespace, gets no new one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RestLimits {
    /// For one pod, as a multiple of the ports that it requests.
    pub(crate) pod: usize,
    /// For one namespace, of each protocol.
    pub(crate) namespace: usize,
}

/// The pod gets no port: the range has too few free ones, or too many of the pod's or the namespace's
/// rest. Says how many, and when or how that ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Exhausted(String);

impl Ports {
    /// Gives the pod every port that it wants, or none. No other pod's `matched` port is drawn.
    pub(crate) fn allocate(
        &mut self,
        now: Duration,
        waiting: &WaitingPod,
        matched: &BTreeSet<PortKey>,
        rng: &mut impl Rng,
    ) -> Result<(), Exhausted> {
        let WaitingPod { pod, wanted, .. } = waiting;
        // another pod may have it by now
        let choices: Vec<Option<PortKey>> = wanted
            .iter()
            .map(|wanted| wanted.matched.filter(|key| self.is_available(*key)))
            .collect();
        self.check_limits(now, waiting, &choices)?;
        for protocol in Protocol::ALL {
            let is_free = |key: &PortKey| key.0 == protocol && self.free.contains(*key);
            let own = |key: &&PortKey| choices.contains(&Some(**key));
            let kept = matched.iter().filter(|key| is_free(key) && !own(key));
            let drawn = wanted.iter().zip(&choices);
            let drawn = drawn.filter(|(wanted, choice)| {
                wanted.port.protocol == protocol && choice.is_none_or(|key| is_free(&key))
            });
            let needed = drawn.count();
            if self.free(protocol) < needed + kept.count() {
                return Err(self.exhausted(protocol, needed));
            }
        }
        // chosen ports first, so that no random pick takes one of them
        for chosen in [true, false] {
            for (wanted, choice) in wanted.iter().zip(&choices) {
                if choice.is_some() == chosen {
                    self.lease(pod, wanted, *choice, matched, rng);
                }
            }
        }
        Ok(())
    }

    fn lease(
        &mut self,
        pod: &PodRef,
        wanted: &WantedPort,
        choice: Option<PortKey>,
        matched: &BTreeSet<PortKey>,
        rng: &mut impl Rng,
    ) {
        let port = &wanted.port;
        // its clients know the port, even if no rule is left that proves it
        let used = wanted.confirmed && choice.is_some();
        let picked = choice.map(|(_, host_port)| host_port);
        let mut draw = || self.free.pick(port.protocol, matched, rng);
        let Some(host_port) = picked.or_else(&mut draw) else {
            return;
        };
        let lease = LeasedPort {
            protocol: port.protocol,
            host_port,
            container_port: port.container_port,
            host_ip: port.host_ip,
        };
        self.change((port.protocol, host_port), |state| {
            let allocated = state.allocate(&pod.uid, lease);
            let leased = allocated.or_else(|state| state.reclaim(&pod.uid, lease))?;
            if used { leased.ruled() } else { Ok(leased) }
        });
    }

    /// The port that a wanted port had before, if the pod may have it again.
    pub(crate) fn previous(&self, pod: &PodRef, wanted: &WantedPort) -> Option<PortKey> {
        let protocol = wanted.port.protocol;
        let named = wanted.previous.map(|host_port| (protocol, host_port));
        let unknown = |key: &PortKey| wanted.confirmed && self.previous.is_unknown(*key);
        let find = || {
            self.previous
                .find(pod, protocol, wanted.port.container_port)
        };
        let free = named.filter(|key| self.free.contains(*key));
        let resting = || named.filter(unknown).or_else(find);
        free.or_else(|| resting().filter(|key| self.is_available(*key)))
    }

    /// A resting port of the pod itself, for a port that has no previous one. It serves a pod whose
    /// requests change again and again: what it drew last is used up before it draws more.
    pub(crate) fn own_resting(
        &self,
        waiting: &WaitingPod,
        protocol: Protocol,
        matched: &BTreeSet<PortKey>,
    ) -> Option<PortKey> {
        let own = self.resting.of_pod(&waiting.pod);
        let draws = self.limits.pod.saturating_sub(1) * waiting.requested;
        if own.len() < draws {
            return None;
        }
        let mut own = own.iter().copied();
        own.find(|key| key.0 == protocol && !matched.contains(key) && self.is_available(*key))
    }

    /// Refuses a new port to a pod, or a namespace, that has too many at rest.
    fn check_limits(
        &self,
        now: Duration,
        WaitingPod {
            pod,
            requested,
            wanted,
        }: &WaitingPod,
        choices: &[Option<PortKey>],
    ) -> Result<(), Exhausted> {
        let ports = wanted.iter().zip(choices);
        let drawn = ports.filter(|(_, choice)| choice.is_none());
        let drawn: BTreeSet<Protocol> = drawn.map(|(wanted, _)| wanted.port.protocol).collect();
        // a namespace may have thousands at rest: they are looked at one by one only for a refusal
        let count = |own: &BTreeSet<PortKey>| {
            let again = choices.iter().flatten().filter(|key| own.contains(key));
            own.len() - again.collect::<BTreeSet<_>>().len()
        };
        let rests = |own: &BTreeSet<PortKey>| {
            let keys = own.iter().filter(|key| !choices.contains(&Some(**key)));
            let left = keys.map(|key| self.ledger.state(*key).rest_left(now));
            let mut left: Vec<Duration> = left.collect();
            left.sort_unstable();
            left
        };
        let wait = |left: &[Duration], limit: usize| {
            let over = left.get(left.len().saturating_sub(limit));
            over.copied().unwrap_or_default().as_secs() + 1
        };
        let (own, limit) = (self.resting.of_pod(pod), self.limits.pod * requested);
        if !drawn.is_empty() && count(own) >= limit {
            let own = rests(own);
            return Err(Exhausted(format!(
                "{} ports that this pod had are cooling down, and the limit for {requested} requested \
                 ports is {limit} (--max-cooling): the pod is mapped when fewer are cooling down, in \
                 about {} s",
                own.len(),
                wait(&own, limit),
            )));
        }
        let limit = self.limits.namespace;
        for protocol in drawn {
            let own = self.resting.of_namespace(&pod.namespace, protocol);
            if count(own) >= limit {
                let own = rests(own);
                return Err(Exhausted(format!(
                    "{} {protocol} ports that pods of namespace {} had are cooling down, and the \
                     limit for one namespace is {limit} (--namespace-share): the pod is mapped when \
                     fewer are cooling down, in about {} s",
                    own.len(),
                    pod.namespace,
                    wait(&own, limit),
                )));
            }
        }
        Ok(())
    }

    /// Whether a pod that had the port may have it again.
    fn is_available(&self, key: PortKey) -> bool {
        let rests = self.ledger.state(key).is_reclaimable() && self.is_grantable(key);
        rests || self.free.contains(key)
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
             ports, {mapped} mapped, {cooling} cooling down, {quarantined} in \
             quarantine, {claimed} static hostPorts of pods, {excluded} excluded; the pod is mapped \
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
