//! The node's host ports: what each one is doing, which are free, and which pod had which.

mod allocate;
mod free_list;
mod keeper;
mod ledger;
mod previous;
mod resting;
mod static_ports;
mod timers;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::{LeasedPort, PodRef, PodUid, PortKey, PortRange, PortSet, Protocol};

pub(crate) use allocate::{Exhausted, RestLimits, WaitingPod, WantedPort};
pub(crate) use ledger::{KEEPER_RETRY, key_of};
pub(crate) use static_ports::{StaticPort, static_ports};
pub(crate) use timers::Timers;

use free_list::FreeList;
use ledger::{Hold, Ledger, Port, PortState, Transition};
use previous::PreviousPorts;
use resting::RestingPorts;
use timers::PortTimers;

static NO_LEASES: BTreeSet<LeasedPort> = BTreeSet::new();

/// The ledger, and what is derived from it so that no event reads all of it.
#[derive(Debug)]
pub(crate) struct Ports {
    range: PortRange,
    /// Ports of the range that no pod may have.
    excluded: PortSet,
    limits: RestLimits,
    ledger: Ledger,
    /// Ports of the range that are Free, not excluded and not claimed.
    free: FreeList,
    /// The ports of each pod.
    leases: BTreeMap<PodUid, BTreeSet<LeasedPort>>,
    /// When the keeper is to be asked about a port.
    keeper_due: PortTimers,
    /// When a quarantine is over.
    quarantines: PortTimers,
    /// The previous use of the ports that a pod may reclaim.
    previous: PreviousPorts,
    /// Whose ports rest.
    resting: RestingPorts,
    /// The keeper failed; it is asked for nothing before.
    keeper_retry: Option<Duration>,
    /// Pods whose ports, or whether these are held, changed since they were last taken.
    touched: BTreeSet<PodUid>,
    /// Whether a port became free, or its rest ended, since that was last asked.
    freed: bool,
}

impl Ports {
    /// Every port is free, except the excluded ones.
    pub(crate) fn new(range: PortRange, excluded: PortSet, limits: RestLimits) -> Self {
        let mut free = FreeList::new(range);
        for port in range.ports().filter(|port| !excluded.contains(*port)) {
            for protocol in Protocol::ALL {
                free.insert((protocol, port));
            }
        }
        Self {
            range,
            excluded,
            limits,
            ledger: Ledger::default(),
            free,
            leases: BTreeMap::new(),
            keeper_due: PortTimers::default(),
            quarantines: PortTimers::default(),
            previous: PreviousPorts::default(),
            resting: RestingPorts::default(),
            keeper_retry: None,
            touched: BTreeSet::new(),
            freed: false,
        }
    }

    /// Carries a transition out; false where it was refused.
    fn change(&mut self, key: PortKey, step: impl FnOnce(PortState) -> Transition) -> bool {
        let Some(before) = self.ledger.change(key, step) else {
            return false;
        };
        self.index(key, &before);
        true
    }

    /// Brings everything that is derived from a port's state up to date.
    fn index(&mut self, key: PortKey, before: &PortState) {
        let grantable = self.is_grantable(key);
        let state = self.ledger.state(key);
        if *state != PortState::Free || !grantable {
            self.free.remove(key);
        } else if self.free.insert(key) {
            self.freed = true;
        }
        self.keeper_due.set(&key, state.keeper_due());
        self.quarantines.set(&key, state.quarantined_until());
        if !state.is_reclaimable() {
            self.previous.forget(key);
        }
        if before.is_resting() && !state.is_resting() {
            self.resting.forget(key);
            self.freed = true;
        }
        let held = |state: &PortState| state.hold() == Some(Hold::Held);
        if before.lease() == state.lease() && held(before) == held(state) {
            return;
        }
        if let Some((pod, lease)) = before.lease() {
            self.touched.insert(pod.clone());
            if let Some(leases) = self.leases.get_mut(pod) {
                leases.remove(&lease);
                if leases.is_empty() {
                    self.leases.remove(pod);
                }
            }
        }
        if let Some((pod, lease)) = state.lease() {
            self.touched.insert(pod.clone());
            self.leases.entry(pod.clone()).or_default().insert(lease);
        }
    }

    /// Whether pods may have the port when it is Free.
    fn is_grantable(&self, key: PortKey) -> bool {
        let usable = self.range.contains(key.1) && !self.excluded.contains(key.1);
        usable && self.ledger.port(key).claims.is_empty()
    }

    /// Takes over a lease that a rule in the kernel proves; false where the port is not free.
    pub(crate) fn recover_lease(&mut self, pod: &PodUid, lease: LeasedPort, held: bool) -> bool {
        self.change(key_of(&lease), |port| port.recover_lease(pod, lease, held))
    }

    /// Takes over a port that the keeper holds and no pod leases. Its pod may be gone; or its rules
    /// were flushed just before, and then only the pod's own result names the port.
    pub(crate) fn recover_hold(
        &mut self,
        now: Duration,
        key: PortKey,
        rest: Duration,
        ruled: bool,
    ) {
        if self.change(key, |port| port.recover_hold(now, rest, ruled)) {
            self.previous.record_unknown(key);
        }
    }

    /// The pod loses the port. It rests, still held, so that late clients are refused and do not
    /// reach another pod. `pod` is the one that may reclaim it.
    pub(crate) fn end_lease(
        &mut self,
        now: Duration,
        lease: &LeasedPort,
        pod: Option<&PodRef>,
        rest: Duration,
        ruled: bool,
    ) {
        let key = key_of(lease);
        let ended = self.change(key, |port| port.end_lease(now, rest, ruled, false));
        if let Some(pod) = pod.filter(|_| ended) {
            self.previous.record(key, pod, lease.container_port);
            if !self.ledger.state(key).rest_left(now).is_zero() {
                self.resting.record(key, pod);
            }
        }
    }

    /// A rule for the port is asked for.
    pub(crate) fn ruled(&mut self, key: PortKey) {
        self.change(key, PortState::ruled);
    }

    /// The pod loses the port to a static claim: the port does not rest.
    pub(crate) fn end_lease_early(&mut self, now: Duration, key: PortKey, ruled: bool) {
        self.change(key, |port| port.end_lease(now, Duration::ZERO, ruled, true));
    }

    /// The last rule of the port is out of the kernel.
    pub(crate) fn rules_removed(&mut self, now: Duration, key: PortKey) {
        self.change(key, |port| port.rules_removed(now));
    }

    /// The pod's spec claims the number: it is given to no pod, and a rest ends.
    pub(crate) fn claim(&mut self, now: Duration, pod: &PodUid, key: PortKey) {
        self.change(key, |port| port.claim(now));
        self.set_claim(pod, key, true);
    }

    /// The pod's spec does not claim the number any more.
    pub(crate) fn unclaim(&mut self, pod: &PodUid, key: PortKey) {
        self.set_claim(pod, key, false);
    }

    fn set_claim(&mut self, pod: &PodUid, key: PortKey, claims: bool) {
        self.ledger.set_claim(key, pod, claims);
        let state = self.ledger.state(key).clone();
        self.index(key, &state);
    }

    /// The pod that leases a port, with the lease.
    pub(crate) fn owner(&self, key: PortKey) -> Option<(&PodUid, LeasedPort)> {
        self.ledger.state(key).lease()
    }

    /// The ports of a pod.
    pub(crate) fn leases(&self, pod: &PodUid) -> &BTreeSet<LeasedPort> {
        self.leases.get(pod).unwrap_or(&NO_LEASES)
    }

    /// Whether every port of the pod is bound.
    pub(crate) fn all_held(&self, pod: &PodUid) -> bool {
        let holds = |lease| self.ledger.state(key_of(lease)).hold();
        let mut leases = self.leases(pod).iter();
        leases.all(|lease| holds(lease) == Some(Hold::Held))
    }

    /// Ports whose rest begins when their last rule is out of the kernel.
    pub(crate) fn draining(&self) -> Vec<PortKey> {
        let draining = |port: &Port| matches!(port.state, PortState::Draining { .. });
        let ports = self.ledger.iter().filter(|(_, port)| draining(port));
        ports.map(|(key, _)| key).collect()
    }

    /// How many ports rest, and how many are in quarantine.
    pub(crate) fn resting_and_quarantined(&self) -> (usize, usize) {
        let states = || self.ledger.iter().map(|(_, port)| &port.state);
        let resting = states().filter(|state| state.is_resting());
        let quarantined = states().filter(|state| state.quarantined_until().is_some());
        (resting.count(), quarantined.count())
    }

    /// How many ports any pod may have.
    pub(crate) fn free(&self, protocol: Protocol) -> usize {
        self.free.len(protocol)
    }

    /// The pods whose ports, or whether these are held, changed since the last call.
    pub(crate) fn take_touched(&mut self) -> BTreeSet<PodUid> {
        std::mem::take(&mut self.touched)
    }

    /// Whether a port became free since the last call.
    pub(crate) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Compares what is derived with what the ledger says; for tests and simulations.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut derived = Self::new(self.range, self.excluded.clone(), self.limits);
        derived.ledger = self.ledger.clone();
        for (key, _) in self.ledger.iter() {
            derived.index(key, &PortState::Free);
        }
        let mut all = self
            .range
            .ports()
            .flat_map(|port| Protocol::ALL.map(|of| (of, port)));
        let indexes = |ports: &Self| {
            (
                ports.leases.clone(),
                ports.keeper_due.clone(),
                ports.quarantines.clone(),
            )
        };
        if all.any(|key| self.free.contains(key) != derived.free.contains(key))
            || indexes(self) != indexes(&derived)
        {
            return Err(format!("the indexes contradict the ledger: {self:?}"));
        }
        let rests = |key: &PortKey| self.ledger.state(*key).is_resting();
        if let Some(key) = self.resting.ports().find(|key| !rests(key)) {
            return Err(format!("{key:?} counts as resting and does not rest"));
        }
        let reclaimable = |key: &PortKey| self.ledger.state(*key).is_reclaimable();
        match self.previous.ports().find(|key| !reclaimable(key)) {
            Some(key) => Err(format!("{key:?} has a previous use and is not reclaimable")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
