//! Which pod gets which port.

use std::collections::{BTreeMap, BTreeSet};

use portmapping_shared::{HostPort, LeasedPort, PodUid, Protocol, RequestedPort};

use super::NodeState;
use crate::action::EventKind;
use crate::pods::state::{Hold, PodState, Refusal};
use crate::ports::{Exhausted, PortKey};

/// Where one port of a pod shall come from.
#[derive(Clone, Copy)]
enum Choice {
    /// A free port that an earlier result of this pod names.
    Named(PortKey),
    /// A resting port that a pod of this name had.
    Previous(PortKey),
    /// Any free one.
    Any,
}

impl NodeState {
    /// Grants ports to every pod that lacks some, oldest first. A pod takes all it lacks or none.
    pub(super) fn allocate_waiting(&mut self) {
        let all = std::mem::take(&mut self.came_free);
        let due = |entry: &&(u64, PodUid)| all || self.dirty.contains(&entry.1);
        let due: Vec<PodUid> = self
            .waiting
            .iter()
            .filter(due)
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in due {
            self.allocate(&uid);
        }
    }

    fn allocate(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        let missing = pod.unleased();
        let choices = self.choices(pod, &missing);
        self.dirty.insert(uid.clone());
        if let Err(exhausted) = self.enough_for(&missing, &choices) {
            let message = self.exhaustion(exhausted);
            if let Some(pod) = self.pods.get_mut(uid)
                // the numbers of the first refusal stay: a new text would be a new API write
                && !pod.refusal.as_ref().is_some_and(|r| r.kind == EventKind::NoFreePort)
            {
                pod.refusal = Some(Refusal {
                    kind: EventKind::NoFreePort,
                    message,
                });
            }
            return;
        }
        // before any is picked: a pick must not take what another port of the pod wishes
        for choice in &choices {
            if let Choice::Named(key) = choice {
                self.pool.take(*key);
            }
        }
        for (port, choice) in missing.iter().zip(choices) {
            let host_port = match choice {
                Choice::Named((_, host_port)) => Some(host_port),
                Choice::Previous(key) => {
                    // still held, and the keeper says so when it is asked again
                    self.cooling.remove(key);
                    self.draining.remove(&key);
                    self.previous.forget(key);
                    Some(key.1)
                }
                Choice::Any => self.pool.pick(port.protocol, &mut self.rng),
            };
            let Some(host_port) = host_port else { continue };
            let lease = LeasedPort {
                protocol: port.protocol,
                host_port,
                container_port: port.container_port,
                host_ip: port.host_ip,
            };
            self.begin_lease(uid, lease, Hold::Missing);
        }
        if let Some(pod) = self.pods.get_mut(uid)
            && pod
                .refusal
                .as_ref()
                .is_some_and(|r| r.kind == EventKind::NoFreePort)
        {
            pod.refusal = None;
        }
        self.update_waiting(uid);
    }

    /// Where each port shall come from. No two choices name the same port.
    fn choices(&self, pod: &PodState, missing: &[RequestedPort]) -> Vec<Choice> {
        let mut named = BTreeSet::new();
        let choose = |port: &RequestedPort| {
            let previous_port = pod
                .previous_port(port)
                .map(|previous_port| (port.protocol, previous_port));
            if let Some(key) =
                previous_port.filter(|key| self.pool.is_free(*key) && named.insert(*key))
            {
                return Choice::Named(key);
            }
            let confirmed = pod.confirmed_previous_port(port);
            let lost = confirmed.map(|previous_port| (port.protocol, previous_port));
            let lost = lost.filter(|key| self.previous.is_unknown(*key));
            let facts = pod.facts.as_ref();
            let former = facts.and_then(|facts| {
                self.previous
                    .find(&facts.pod, port.protocol, port.container_port)
            });
            let former = lost.or(former);
            match former.filter(|key| self.pool.is_grantable(*key) && named.insert(*key)) {
                Some(key) => Choice::Previous(key),
                None => Choice::Any,
            }
        };
        missing.iter().map(choose).collect()
    }

    fn enough_for(&self, missing: &[RequestedPort], choices: &[Choice]) -> Result<(), Exhausted> {
        let mut asked: BTreeMap<Protocol, usize> = BTreeMap::new();
        for (port, choice) in missing.iter().zip(choices) {
            if !matches!(choice, Choice::Previous(_)) {
                *asked.entry(port.protocol).or_default() += 1;
            }
        }
        for (protocol, asked) in asked {
            let free = self.pool.free(protocol);
            if free < asked {
                return Err(Exhausted {
                    protocol,
                    asked,
                    free,
                });
            }
        }
        Ok(())
    }

    /// Says where the ports are, and what would help.
    fn exhaustion(&self, exhausted: Exhausted) -> String {
        let Exhausted { protocol, .. } = exhausted;
        let of = |key: &(Protocol, HostPort)| key.0 == protocol;
        let mapped = self.owners.keys().filter(|key| of(key)).count();
        let cooling = self.resting().filter(of).count();
        let quarantined = self.quarantined.keys().filter(of).count();
        let declared: BTreeSet<PortKey> = self.static_keys().filter(of).collect();
        let range = self.pool.range();
        let declared = declared.iter().filter(|key| range.contains(key.1)).count();
        format!(
            "{exhausted}: range {range} has {size} ports, {mapped} mapped, {cooling} cooling down, \
             {quarantined} held by other processes, {declared} static hostPorts of pods, \
             {excluded} excluded; the pod is mapped when ports come free, a larger --range helps \
             for good",
            size = range.size(),
            excluded = self.pool.excluded(),
        )
    }

    /// Ports on their way from one pod to the next.
    pub(super) fn resting(&self) -> impl Iterator<Item = PortKey> + '_ {
        let letting_go = self.draining.keys().chain(&self.releasing).copied();
        self.cooling.keys().chain(letting_go)
    }
}
