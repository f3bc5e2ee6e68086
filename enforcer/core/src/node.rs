//! The node's state: every pod, every port, what the kernel holds, and what to do next.

mod addressing;
mod allocating;
mod audit;
mod forgetting;
mod holding;
mod judging;
mod leases;
mod programming;
mod publishing;
mod recovering;
mod statics;
mod status;
mod waking;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{PodUid, PortRange, PortSet};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::action::{Action, EventKind, PodEvent};
use crate::addresses::Addresses;
use crate::mappings::MappingTable;
use crate::pods::state::{self, PodFacts, PodState, Refusal, StaticPort, Want};
use crate::ports::previous::PreviousPorts;
use crate::ports::timers::PortTimers;
use crate::ports::{PortKey, PortPool};

use programming::Kernel;

pub use recovering::Recovered;
pub use status::{Counts, PodStatus, Status};

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host ports to allocate from.
    pub range: PortRange,
    /// Ports of the range never to allocate.
    pub excluded: PortSet,
    /// How long a released port rests before it is given to anyone.
    pub cooldown: Duration,
    /// How long a port found in a stranger's hands is left alone.
    pub quarantine: Duration,
    /// Ports one pod may have.
    pub max_ports: usize,
    /// Whether the dataplane can translate IPv6.
    pub ipv6: bool,
}

/// Every decision of one node's enforcer. See the crate's head for the flow.
///
/// Each event marks the pods it may concern as `dirty`, and `converge` asks of those what is still
/// missing; `audit` says whether a look at everybody would find more.
#[derive(Debug)]
pub struct NodeState {
    config: Config,
    rng: StdRng,
    pool: PortPool,
    cooling: PortTimers,
    quarantined: PortTimers,
    /// To rest for so long once their last rule is out of the kernel.
    draining: BTreeMap<PortKey, Duration>,
    /// Let go of by us, not yet by the keeper.
    releasing: BTreeSet<PortKey>,
    /// Ports to let go of at once, and to give to nobody for as long as they would have
    /// rested: a static port needs them, or the keeper has them for nobody.
    release_early: BTreeSet<PortKey>,
    /// What resting ports were to whom.
    previous: PreviousPorts,
    pods: BTreeMap<PodUid, PodState>,
    /// The pod of each namespace and name.
    names: BTreeMap<(String, String), PodUid>,
    /// The pod that leases each port.
    owners: BTreeMap<PortKey, PodUid>,
    /// Leased ports to ask the keeper for.
    missing: BTreeSet<PortKey>,
    /// Leased ports in strangers' hands.
    lost: BTreeSet<PortKey>,
    addresses: Addresses,
    /// Static host ports by pod, to give them up when the pod goes.
    statics: BTreeMap<PodUid, BTreeSet<StaticPort>>,
    /// The node's own addresses, from whichever pod named them last.
    host_ips: Vec<IpAddr>,
    /// Pods that lack ports, the oldest first.
    waiting: BTreeSet<(u64, PodUid)>,
    /// Ports came free since the waiting were last looked at.
    came_free: bool,
    /// Pods to look at.
    dirty: BTreeSet<PodUid>,
    /// Pods to look at later.
    wakes: BTreeSet<(Duration, PodUid)>,
    next_seq: u64,
    /// Every rule that should be in the kernel.
    desired: MappingTable,
    /// Pods for which kernel and desire differ.
    unsettled: BTreeSet<PodUid>,
    kernel: Kernel,
    /// The keeper failed; nothing is asked of it before.
    keeper_retry: Option<Duration>,
    /// Mapped ports in a stranger's hands are asked for again then.
    lost_retry: Option<Duration>,
    actions: Vec<Action>,
    /// Pods looked at so far.
    #[cfg(test)]
    processed: usize,
}

impl NodeState {
    /// An empty node; nothing is known of the kernel, so the first plan makes the frame.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let pool = PortPool::new(config.range, config.excluded.clone());
        Self {
            config,
            rng: StdRng::seed_from_u64(seed),
            pool,
            cooling: PortTimers::default(),
            quarantined: PortTimers::default(),
            draining: BTreeMap::new(),
            releasing: BTreeSet::new(),
            release_early: BTreeSet::new(),
            previous: PreviousPorts::default(),
            pods: BTreeMap::new(),
            names: BTreeMap::new(),
            owners: BTreeMap::new(),
            missing: BTreeSet::new(),
            lost: BTreeSet::new(),
            addresses: Addresses::default(),
            statics: BTreeMap::new(),
            host_ips: Vec::new(),
            waiting: BTreeSet::new(),
            came_free: false,
            dirty: BTreeSet::new(),
            wakes: BTreeSet::new(),
            next_seq: 0,
            desired: MappingTable::default(),
            unsettled: BTreeSet::new(),
            kernel: Kernel::default(),
            keeper_retry: None,
            lost_retry: None,
            actions: Vec::new(),
            #[cfg(test)]
            processed: 0,
        }
    }

    /// What to do now, in order. Call after every other method, and carry all of it out.
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The API shows this pod.
    pub fn pod_applied(&mut self, now: Duration, facts: PodFacts) {
        let uid = facts.pod.uid.clone();
        self.take_name(now, &facts);
        let seq = self.arrival();
        if !facts.host_ips.is_empty() && self.host_ips != facts.host_ips {
            self.host_ips.clone_from(&facts.host_ips);
            // what is published names them
            self.mark_all();
        }
        let max_ports = self.config.max_ports;
        let pod = self
            .pods
            .entry(uid.clone())
            .or_insert_with(|| PodState::new(seq));
        let before = pod.facts.as_ref();
        if before.is_none_or(|before| before.pod_ips != facts.pod_ips) {
            pod.addressed = seq;
        }
        let first = before.is_none();
        if first {
            // a result found in the API was announced by whoever wrote it
            pod.announced.clone_from(&facts.record.annotation);
        }
        pod.want = state::want(&facts, max_ports);
        if pod
            .publish
            .echo
            .as_ref()
            .is_some_and(|(echo, _)| *echo == facts.record)
        {
            pod.publish.echo = None;
        }
        let statics = state::static_ports(&facts);
        self.addresses.api_says(&uid, &facts.pod_ips);
        pod.facts = Some(facts);
        self.set_static_ports(now, &uid, &statics);
        self.update_addresses(&uid);
        self.settle_lease(now, &uid);
        self.check_result(now, &uid, first);
        self.dirty.insert(uid);
        self.converge(now);
    }

    /// The API says that this pod is gone.
    pub fn pod_gone(&mut self, now: Duration, uid: &PodUid) {
        self.forget(now, uid);
        self.converge(now);
    }

    /// A complete list of the node's pods has come in through `pod_applied`: all others are gone.
    pub fn relisted(&mut self, now: Duration, living: &BTreeSet<PodUid>) {
        let gone: Vec<PodUid> = self
            .pods
            .keys()
            .filter(|uid| !living.contains(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.forget(now, &uid);
        }
        for pod in self.pods.values_mut() {
            // a list shows the present: there is no older event left to wait for
            pod.publish.echo = None;
        }
        self.mark_all();
        self.converge(now);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        self.converge(now);
    }

    /// When `tick` is due at the latest; None: not before something else happens. Always after the
    /// `now` of the last call: what waits for an answer has no deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        // the keeper is not asked for anything before keeper_retry
        let of_keeper = [self.next_release(), self.lost_retry, self.keeper_retry];
        let of_keeper = of_keeper.into_iter().flatten().min().max(self.keeper_retry);
        let of_pods = self.wakes.first().map(|(at, _)| *at);
        let own = [
            self.quarantined.next(),
            self.next_program(),
            of_keeper,
            of_pods,
        ];
        own.into_iter().flatten().min()
    }

    /// Asks of every pod that something happened to what is still missing. Idempotent: what is in
    /// flight is not asked twice.
    fn converge(&mut self, now: Duration) {
        self.wake(now);
        self.wake_quarantined(now);
        self.allocate_waiting();
        let dirty = std::mem::take(&mut self.dirty);
        #[cfg(test)]
        {
            self.processed += dirty.len();
        }
        for uid in &dirty {
            self.update_desired(uid);
            self.check_rules(uid);
        }
        self.ask_holds(now);
        self.program(now);
        for uid in &dirty {
            self.publish(now, uid);
            self.emit_suppressed(now, uid);
            self.schedule(uid);
        }
    }

    /// Everything that was missed is found by this: after a list, a reading of the kernel, a new
    /// keeper.
    fn mark_all(&mut self) {
        self.dirty.extend(self.pods.keys().cloned());
        self.dirty.extend(self.kernel.mappings.owners().cloned());
    }

    fn arrival(&mut self) -> u64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// Drops what the pod asks for no more; refusals that depend on its words alone are renewed.
    fn settle_lease(&mut self, now: Duration, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        pod.recovered.clear();
        pod.refusal = match &pod.want {
            Want::Nothing => None,
            Want::Invalid(invalid) => Some(Refusal {
                kind: EventKind::InvalidRequest,
                message: invalid.to_string(),
            }),
            Want::Ports(_) => pod
                .refusal
                .take()
                .filter(|r| r.kind != EventKind::InvalidRequest),
        };
        for lease in pod.surplus() {
            self.end_lease(now, uid, &lease, self.config.cooldown);
        }
        self.update_waiting(uid);
    }

    fn update_waiting(&mut self, uid: &PodUid) {
        if let Some(pod) = self.pods.get(uid) {
            let entry = (pod.seq, uid.clone());
            if pod.unleased().is_empty() {
                self.waiting.remove(&entry);
            } else {
                self.waiting.insert(entry);
            }
        }
    }

    fn emit(&mut self, uid: &PodUid, kind: EventKind, note: String) {
        let pod = self.pods.get(uid).and_then(|pod| pod.facts.as_ref());
        if let Some(facts) = pod {
            self.actions.push(Action::Event(PodEvent {
                pod: facts.pod.clone(),
                kind,
                note,
            }));
        }
    }
}

#[cfg(test)]
mod tests;
