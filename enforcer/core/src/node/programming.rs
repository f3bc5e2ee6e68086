//! Rules: what should be in the kernel, what is, and the one change set between them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{Mapping, Plan, PodUid};

use super::NodeState;
use super::holding::clear;
use super::judging::repaired;
use crate::action::{Action, EventKind};
use crate::mappings::{MappingTable, port_of};
use crate::pods::state::{Blocked, Refusal};
use crate::ports::PortKey;

/// First and longest wait between tries to change the kernel after several failures in a row.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));
/// First and longest wait before a pod is tried again whose rules alone were refused.
const BLOCKED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Failures in a row that halving explains: 2^8 pods, one of them to blame.
const HALVINGS: u32 = 8;
/// Pods in one change set while nothing fails.
const MAX_BATCH: usize = 4096;

/// What we believe to be in the kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) mappings: MappingTable,
    pub(super) intact: bool,
    pub(super) error: Option<String>,
    /// Ports that the change under way may add rules for; None: no change is under way.
    in_flight: Option<BTreeSet<PortKey>>,
    retry_at: Option<Duration>,
    failures: u32,
    /// Pods in the next change set at most; halved by failures, doubled by successes.
    batch: usize,
    /// Pods whose rules were refused when they were tried alone.
    blocked: BTreeMap<PodUid, Blocked>,
    /// Mappings found missing or altered; their pods are told once they are back.
    damaged: BTreeSet<PodUid>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            mappings: MappingTable::default(),
            intact: false,
            error: None,
            in_flight: None,
            retry_at: None,
            failures: 0,
            batch: MAX_BATCH,
            blocked: BTreeMap::new(),
            damaged: BTreeSet::new(),
        }
    }
}

impl Kernel {
    /// Whether the kernel translates the port, or may do so in a moment.
    pub(super) fn ruled(&self, key: PortKey) -> bool {
        let coming = self.in_flight.as_ref();
        self.mappings.uses(key) || coming.is_some_and(|keys| keys.contains(&key))
    }
}

impl NodeState {
    /// Every rule that should be in the kernel.
    #[must_use]
    pub fn desired(&self) -> BTreeSet<Mapping> {
        self.desired.iter().cloned().collect()
    }

    /// The rules a pod should have.
    pub(super) fn desired_of(&self, uid: &PodUid) -> BTreeSet<Mapping> {
        let Some(pod) = self.pods.get(uid) else {
            return BTreeSet::new();
        };
        let owns = |ip: IpAddr| {
            let family = self.config.ipv6 || ip.is_ipv4();
            let ended = self.addresses.has_ended(uid, ip);
            family && !ended && self.addresses.owner(ip).is_none_or(|owner| owner == uid)
        };
        pod.desired(uid, owns, self.kernel.mappings.of(uid))
    }

    /// Finds anew what a pod should have.
    pub(super) fn update_desired(&mut self, uid: &PodUid) {
        self.desired.replace(uid, self.desired_of(uid));
        let (desired, present) = (self.desired.of(uid), self.kernel.mappings.of(uid));
        if desired.is_subset(present) {
            // it asks for nothing that could be refused
            self.kernel.blocked.remove(uid);
        }
        if desired == present {
            self.unsettled.remove(uid);
        } else {
            self.unsettled.insert(uid.clone());
        }
    }

    /// The dataplane carried a plan out, or left the kernel as it was.
    pub fn programmed(&mut self, now: Duration, plan: &Plan, outcome: Result<(), String>) {
        self.kernel.in_flight = None;
        let changed = plan.to_remove.iter().chain(&plan.to_create);
        self.dirty
            .extend(changed.map(|mapping| mapping.owner.clone()));
        match outcome {
            Ok(()) => {
                for mapping in &plan.to_remove {
                    self.kernel.mappings.remove(mapping);
                }
                for mapping in &plan.to_create {
                    self.kernel.mappings.insert(mapping.clone());
                }
                if !self.kernel.intact {
                    self.kernel.intact = true;
                    // nobody could be told of rules without a frame
                    self.mark_all();
                }
                self.kernel.error = None;
                self.kernel.retry_at = None;
                self.kernel.failures = 0;
                self.kernel.batch = self.kernel.batch.saturating_mul(2).min(MAX_BATCH);
                for uid in creators(plan) {
                    self.kernel.blocked.remove(uid);
                }
                self.emit_repaired(now);
            }
            Err(error) => self.blame(now, plan, error),
        }
        let ports = plan.to_remove.iter().chain(&plan.to_create).map(port_of);
        self.begin_rests(now, ports);
        self.converge(now);
    }

    /// One pod's rules can make a whole change set fail (a protocol that this kernel lacks, say).
    /// Smaller and smaller sets find it; it is set aside then, and all others go on.
    fn blame(&mut self, now: Duration, plan: &Plan, error: String) {
        let owners: BTreeSet<&PodUid> = creators(plan).collect();
        self.kernel.batch = (owners.len() / 2).max(1);
        if let (1, Some(uid)) = (owners.len(), owners.first())
            && self.pods.contains_key(*uid)
        {
            let blocked = self.kernel.blocked.get(*uid);
            let failures = blocked.map_or(0, |blocked| blocked.failures);
            let until = now + backoff(BLOCKED, failures);
            let error = error.clone();
            let blocked = Blocked {
                until,
                failures: failures + 1,
                error,
            };
            self.kernel.blocked.insert((*uid).clone(), blocked);
        }
        self.kernel.error = Some(error);
        let wait = backoff(RETRY, self.kernel.failures.saturating_sub(HALVINGS));
        self.kernel.failures = self.kernel.failures.saturating_add(1);
        self.kernel.retry_at = Some(now + wait);
    }

    /// Tells the pods whose damaged rules are all back.
    fn emit_repaired(&mut self, now: Duration) {
        let damaged = std::mem::take(&mut self.kernel.damaged);
        let lacks = |uid: &PodUid| !self.has_rules(uid);
        let (waiting, back): (BTreeSet<_>, BTreeSet<_>) = damaged.into_iter().partition(lacks);
        self.kernel.damaged = waiting;
        for uid in back {
            let Some(pod) = self.pods.get_mut(&uid) else {
                continue;
            };
            if pod.repairs.record(now) {
                self.emit(&uid, EventKind::Repaired, repaired(0));
            }
            self.dirty.insert(uid);
        }
    }

    /// The dataplane read the kernel back. Ignored while a change is under way: what was read may
    /// be from before it.
    pub fn observed(&mut self, now: Duration, mappings: BTreeSet<Mapping>, intact: bool) {
        if self.kernel.in_flight.is_some() {
            return;
        }
        let believed = self.kernel.mappings.iter();
        let missing = believed.filter(|mapping| !intact || !mappings.contains(mapping));
        let damaged: BTreeSet<PodUid> = missing.map(|mapping| mapping.owner.clone()).collect();
        self.kernel.damaged.extend(damaged);
        // before and after: a pod may have lost its last rule, or one of a pod long gone be back
        self.mark_all();
        self.kernel.mappings = mappings.into_iter().collect();
        self.kernel.intact = intact;
        self.mark_all();
        let draining: Vec<PortKey> = self.draining.keys().copied().collect();
        self.begin_rests(now, draining);
        self.converge(now);
    }

    /// Asks for the difference, one change set at a time: everything that piles up while one is
    /// under way goes into the next together.
    pub(super) fn program(&mut self, now: Duration) {
        let waits = self.kernel.retry_at.is_some_and(|at| now < at);
        if self.kernel.in_flight.is_some() || waits {
            return;
        }
        self.kernel.retry_at = None;
        if self.unsettled.is_empty() && self.kernel.intact {
            return;
        }
        let chosen = self.choose(now);
        let mut plan = Plan::default();
        for uid in &self.unsettled {
            let (desired, present) = (self.desired.of(uid), self.kernel.mappings.of(uid));
            plan.to_remove.extend(present.difference(desired).cloned());
            if chosen.contains(uid) {
                plan.to_create.extend(desired.difference(present).cloned());
            }
        }
        plan.unchanged = self.kernel.mappings.len() - plan.to_remove.len();
        if plan.is_empty() && self.kernel.intact {
            return;
        }
        self.kernel.in_flight = Some(plan.to_create.iter().map(port_of).collect());
        self.actions.push(Action::Program(plan));
    }

    /// Whose rules the next change set may create: not those refused lately, and not more than may
    /// be tried at once. A pod that was refused alone is tried alone again, when nobody else waits.
    fn choose(&self, now: Duration) -> BTreeSet<PodUid> {
        let blocked = &self.kernel.blocked;
        let lacks = |uid: &&PodUid| !self.has_rules(uid);
        let healthy = self.unsettled.iter().filter(lacks);
        let healthy = healthy.filter(|uid| !blocked.contains_key(*uid));
        let chosen: BTreeSet<PodUid> = healthy.take(self.kernel.batch).cloned().collect();
        if !chosen.is_empty() {
            return chosen;
        }
        let due = blocked.iter().filter(|(_, blocked)| blocked.until <= now);
        let longest = due.min_by_key(|(_, blocked)| blocked.until);
        longest.map(|(uid, _)| uid.clone()).into_iter().collect()
    }

    /// When the kernel is to be asked again, if nothing else happens.
    pub(super) fn next_program(&self) -> Option<Duration> {
        if self.kernel.in_flight.is_some() {
            return None;
        }
        let due = self.kernel.blocked.values().map(|blocked| blocked.until);
        match (due.min(), self.kernel.retry_at) {
            (Some(due), Some(retry)) => Some(due.max(retry)),
            (due, retry) => retry.or(due),
        }
    }

    /// Tells a pod whether the kernel stands in its way.
    pub(super) fn check_rules(&mut self, uid: &PodUid) {
        let ipv6 = self.config.ipv6;
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        // what stands in the way before the kernel is told first
        let other = |refusal: &Refusal| refusal.kind != EventKind::DataplaneError;
        if pod.refusal.as_ref().is_some_and(other) {
            return;
        }
        let message = match (pod.unservable(ipv6), self.kernel.blocked.get(uid)) {
            (Some(lease), _) => {
                let at = lease
                    .host_ip
                    .map(|ip| format!(" on hostIP {ip}"))
                    .unwrap_or_default();
                format!(
                    "container port {}/{}{at} cannot be mapped: the pod has no address of a \
                     family that the host IP and this node's packet filter both serve",
                    lease.container_port, lease.protocol,
                )
            }
            (None, Some(blocked)) => {
                format!("the node's rules could not be changed: {}", blocked.error)
            }
            (None, None) => {
                clear(&mut pod.refusal, EventKind::DataplaneError);
                return;
            }
        };
        pod.refusal = Some(Refusal {
            kind: EventKind::DataplaneError,
            message,
        });
    }

    /// Whether every rule a pod needs is in the kernel.
    pub(super) fn has_rules(&self, uid: &PodUid) -> bool {
        let present = self.kernel.mappings.of(uid);
        self.desired.of(uid).is_subset(present)
    }
}

/// The pods whose mappings a plan creates.
fn creators(plan: &Plan) -> impl Iterator<Item = &PodUid> {
    plan.to_create.iter().map(|mapping| &mapping.owner)
}

fn backoff((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}
