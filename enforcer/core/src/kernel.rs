//! The rules: which there should be, which the kernel has, and the one change set between the two.
//!
//! One change set is under way at a time. Everything that changes in between goes into the next.

mod mappings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{Backoff, Mapping, Plan, PodUid, PortKey};

use crate::action::{Closed, RuleError};
use mappings::MappingTable;
pub(crate) use mappings::port_of;

/// Waits between attempts to change the kernel after several failures in a row.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(20),
    longest: Duration::from_secs(30),
};
/// Waits before a pod is tried again whose rules alone were refused.
const BLOCKED: Backoff = Backoff {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(30),
};
/// Failures in a row that halving explains: 2^8 pods, of which one is refused.
const HALVINGS: u32 = 8;
/// Pods in one change set while nothing fails.
const MAX_BATCH: usize = 4096;
/// How long a read of the kernel may wait for changes. Then changes wait for it.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// A change makes a read under way useless, so changes without a pause would end every read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// None is asked for.
    Idle,
    /// One was asked for at this time, and is not answered.
    Asked(Duration),
    /// It has waited too long: the next change comes after it.
    First,
}

/// A pod whose rules the kernel refused when they were tried alone.
#[derive(Clone, Debug)]
struct Blocked {
    /// Not tried again before.
    until: Duration,
    failures: u32,
    error: RuleError,
}

/// The rules that should be in the kernel, and those that are.
#[derive(Debug)]
pub(crate) struct Kernel {
    desired: MappingTable,
    present: MappingTable,
    /// Whether the chains around the rules are complete.
    intact: bool,
    /// Pods for which desired and present rules differ, with their turn: whose rules the kernel refuses again
    /// and again must not come before others.
    unsettled: BTreeMap<PodUid, u64>,
    /// The turn of the next one.
    next_turn: u64,
    /// Ports that the change under way may add rules for; None: no change is under way.
    in_flight: Option<BTreeSet<PortKey>>,
    error: Option<RuleError>,
    retry_at: Option<Duration>,
    failures: u32,
    /// Pods in the next change set at most; halved by a failure, doubled by a success.
    batch: usize,
    blocked: BTreeMap<PodUid, Blocked>,
    /// None of them is tried before; set while none of them succeeds, because every change may fail.
    blocked_until: Option<Duration>,
    /// The last change set failed, and rules that were to be created may be why: what is to be removed does
    /// not wait for them.
    removals_first: bool,
    /// Pods whose rules were found missing or altered; they get an event once the rules are back.
    damaged: BTreeSet<PodUid>,
    closed: Closed,
    read: Read,
}

impl Kernel {
    /// A kernel that has these rules.
    pub(crate) fn new(present: BTreeSet<Mapping>, intact: bool) -> Self {
        Self {
            desired: MappingTable::default(),
            present: present.into_iter().collect(),
            intact,
            unsettled: BTreeMap::new(),
            next_turn: 0,
            in_flight: None,
            error: None,
            retry_at: None,
            failures: 0,
            batch: MAX_BATCH,
            blocked: BTreeMap::new(),
            blocked_until: None,
            removals_first: false,
            damaged: BTreeSet::new(),
            closed: Closed::default(),
            read: Read::Idle,
        }
    }

    /// A read is asked for; `end_read` follows.
    pub(crate) fn ask_read(&mut self, now: Duration) {
        if self.read == Read::Idle {
            self.read = Read::Asked(now);
        }
    }

    /// No read is waited for any more.
    pub(crate) fn end_read(&mut self) {
        self.read = Read::Idle;
    }

    /// Whether the kernel translates the port, or may do so once the change under way is done.
    pub(crate) fn is_ruled(&self, key: PortKey) -> bool {
        let coming = self.in_flight.as_ref();
        self.present.uses(key) || coming.is_some_and(|keys| keys.contains(&key))
    }

    /// Whether every rule that a pod needs is in the kernel.
    pub(crate) fn has_rules(&self, pod: &PodUid) -> bool {
        self.desired.of(pod).is_subset(self.present.of(pod))
    }

    /// Whether the chains around the rules are complete.
    pub(crate) fn is_intact(&self) -> bool {
        self.intact
    }

    /// The rules that a pod should have.
    pub(crate) fn desired(&self, pod: &PodUid) -> &BTreeSet<Mapping> {
        self.desired.of(pod)
    }

    /// Every rule that should be in the kernel.
    pub(crate) fn all_desired(&self) -> impl Iterator<Item = &Mapping> {
        self.desired.iter()
    }

    /// The rules that a pod has.
    pub(crate) fn present(&self, pod: &PodUid) -> &BTreeSet<Mapping> {
        self.present.of(pod)
    }

    /// The pods that have rules.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &PodUid> {
        self.present.owners()
    }

    /// How many rules the kernel has.
    pub(crate) fn len(&self) -> usize {
        self.present.len()
    }

    /// How many of them are of IPv6.
    pub(crate) fn ipv6_len(&self) -> usize {
        self.present.ipv6()
    }

    /// Why the last change failed.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_ref().map(|error| error.message.as_str())
    }

    /// Why the kernel refuses a pod's rules, if it does.
    pub(crate) fn refusal(&self, pod: &PodUid) -> Option<&RuleError> {
        self.blocked.get(pod).map(|blocked| &blocked.error)
    }

    /// Why packets to the pod's ports are dropped after their translation, if they are in a family that
    /// the node serves.
    pub(crate) fn closed(&self, pod: &PodUid, serves: impl Fn(IpAddr) -> bool) -> Option<&str> {
        let rules = self.desired.of(pod).iter().map(|rule| rule.pod_ip);
        let mut known = rules.filter(|ip| serves(*ip));
        known.find_map(|ip| match ip {
            IpAddr::V4(_) => self.closed.ipv4.as_deref(),
            IpAddr::V6(_) => self.closed.ipv6.as_deref(),
        })
    }

    /// Sets what keeps forwarded packets from all pods; whether that is new.
    pub(crate) fn set_closed(&mut self, closed: Closed) -> bool {
        let is_new = self.closed != closed;
        self.closed = closed;
        is_new
    }

    /// Sets the rules that a pod should have.
    pub(crate) fn set_desired(&mut self, pod: &PodUid, mappings: BTreeSet<Mapping>) {
        self.desired.replace(pod, mappings);
        let (desired, present) = (self.desired.of(pod), self.present.of(pod));
        if desired.is_subset(present) {
            // no rule is left that could be refused
            self.blocked.remove(pod);
        }
        if desired == present {
            self.unsettled.remove(pod);
        } else {
            self.unsettled.entry(pod.clone()).or_insert(self.next_turn);
            self.next_turn += 1;
        }
    }

    /// The next change set, if one is due.
    pub(crate) fn next_plan(&mut self, now: Duration) -> Option<Plan> {
        if matches!(self.read, Read::Asked(since) if now >= since + READ_PATIENCE) {
            self.read = Read::First;
        }
        if self.is_waiting() {
            return None;
        }
        let mut plan = Plan::default();
        for pod in self.unsettled.keys() {
            let (desired, present) = (self.desired.of(pod), self.present.of(pod));
            plan.to_remove.extend(present.difference(desired).cloned());
        }
        let removes = !plan.to_remove.is_empty();
        if !(self.removals_first && removes) {
            if self.retry_at.is_some_and(|at| now < at) {
                return None;
            }
            self.retry_at = None;
            for pod in self.choose(now, removes) {
                let (desired, present) = (self.desired.of(&pod), self.present.of(&pod));
                plan.to_create.extend(desired.difference(present).cloned());
            }
        }
        if plan.is_empty() && self.intact {
            return None;
        }
        plan.unchanged = self.present.len() - plan.to_remove.len();
        self.in_flight = Some(plan.to_create.iter().map(port_of).collect());
        Some(plan)
    }

    /// The pods whose rules the next change set may create: none that was refused lately, and not
    /// more than may be tried at once. A pod that was refused alone is tried alone again, when no
    /// other pod waits and nothing is to be removed.
    fn choose(&self, now: Duration, removes: bool) -> BTreeSet<PodUid> {
        let waits = |pod: &&PodUid| !self.has_rules(pod) && !self.blocked.contains_key(*pod);
        let turns = self.unsettled.iter().map(|(pod, turn)| (*turn, pod));
        let mut waiting: Vec<_> = turns.filter(|(_, pod)| waits(pod)).collect();
        waiting.sort_unstable();
        let waiting = waiting.into_iter().take(self.batch);
        let chosen: BTreeSet<PodUid> = waiting.map(|(_, pod)| pod.clone()).collect();
        if !chosen.is_empty() || removes || self.blocked_until.is_some_and(|at| now < at) {
            return chosen;
        }
        let longest = self.blocked.iter().min_by_key(|(_, blocked)| blocked.until);
        let due = longest.filter(|(_, blocked)| blocked.until <= now);
        due.map(|(pod, _)| pod.clone()).into_iter().collect()
    }

    /// The dataplane carried a plan out, or left the kernel as it was.
    pub(crate) fn applied(&mut self, now: Duration, plan: &Plan, outcome: Result<(), RuleError>) {
        self.in_flight = None;
        if let Err(error) = outcome {
            return self.failed(now, plan, error);
        }
        for mapping in &plan.to_remove {
            self.present.remove(mapping);
        }
        for mapping in &plan.to_create {
            self.present.insert(mapping.clone());
            self.blocked.remove(&mapping.owner);
        }
        self.intact = true;
        self.error = None;
        self.removals_first = false;
        self.retry_at = None;
        self.failures = 0;
        if plan.to_create.is_empty() {
            return;
        }
        self.blocked_until = None;
        self.batch = self.batch.saturating_mul(2).min(MAX_BATCH);
    }

    /// The rules of one pod can make a whole change set fail (a protocol that this kernel lacks, for
    /// example). Smaller and smaller sets find that pod; then it is blocked, and the others go on.
    fn failed(&mut self, now: Duration, plan: &Plan, error: RuleError) {
        let creators: BTreeSet<&PodUid> = plan.to_create.iter().map(|m| &m.owner).collect();
        self.error = Some(error.clone());
        self.removals_first = !creators.is_empty();
        if let (1, Some(pod)) = (creators.len(), creators.first()) {
            let failures = self.blocked.get(*pod).map_or(0, |blocked| blocked.failures);
            let blocked = Blocked {
                until: now + BLOCKED.after(failures.saturating_add(1), 0.0),
                failures: failures + 1,
                error,
            };
            self.blocked.insert((*pod).clone(), blocked);
            if plan.to_remove.is_empty() {
                // it says nothing of other pods' rules
                self.blocked_until = Some(now + BLOCKED.first);
                self.retry_at = Some(now + RETRY.first);
                return;
            }
        }
        self.batch = (creators.len() / 2).max(1);
        let wait = RETRY.after(
            self.failures.saturating_sub(HALVINGS).saturating_add(1),
            0.0,
        );
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + wait);
    }

    /// The dataplane read the kernel back. False while a change is under way: what was read may be
    /// from before it.
    pub(crate) fn observed(&mut self, mappings: BTreeSet<Mapping>, intact: bool) -> bool {
        if self.in_flight.is_some() {
            return false;
        }
        let gone = |mapping: &&Mapping| !intact || !mappings.contains(mapping);
        let damaged = self.present.iter().filter(gone);
        let pods = damaged.map(|mapping| mapping.owner.clone());
        self.damaged.extend(pods);
        self.present = mappings.into_iter().collect();
        self.intact = intact;
        true
    }

    /// The pods whose damaged rules are all back.
    pub(crate) fn take_repaired(&mut self) -> BTreeSet<PodUid> {
        let damaged = std::mem::take(&mut self.damaged);
        let (repaired, damaged) = damaged.into_iter().partition(|pod| self.has_rules(pod));
        self.damaged = damaged;
        repaired
    }

    /// Whether the next change waits for an answer.
    fn is_waiting(&self) -> bool {
        self.in_flight.is_some() || self.read == Read::First
    }

    /// When the next change is to be tried, if no event comes before.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        if self.is_waiting() {
            return None;
        }
        let removes = |pod: &PodUid| !self.present.of(pod).is_subset(self.desired.of(pod));
        let waits = |pod: &PodUid| !self.blocked.contains_key(pod) || removes(pod);
        if self.retry_at.is_some() && self.unsettled.keys().any(waits) {
            return self.retry_at;
        }
        let due = self.blocked.values().map(|blocked| blocked.until).min();
        due.max(self.blocked_until.filter(|_| due.is_some()))
            .max(self.retry_at)
    }

    /// Compares what is derived with the rules; for tests and simulations.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let pods: BTreeSet<&PodUid> = self.present.owners().chain(self.desired.owners()).collect();
        let differs = |pod: &&PodUid| self.present.of(pod) != self.desired.of(pod);
        let unsettled: BTreeSet<&PodUid> = pods.into_iter().filter(differs).collect();
        if unsettled == self.unsettled.keys().collect() {
            return Ok(());
        }
        Err(format!(
            "unsettled pods: {:?}, not {unsettled:?}",
            self.unsettled
        ))
    }
}

/// The ports that a plan adds or removes rules of.
pub(crate) fn ports_of(plan: &Plan) -> impl Iterator<Item = PortKey> {
    plan.to_remove.iter().chain(&plan.to_create).map(port_of)
}
