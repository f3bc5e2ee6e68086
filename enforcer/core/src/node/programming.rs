//! Rules: what should be in the kernel, what is, and the one change set between them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{Mapping, PodUid};

use super::NodeState;
use super::holding::clear;
use crate::action::{Action, EventKind};
use crate::plan::Plan;
use crate::pod::{Blocked, Refusal};

/// First and longest wait between tries to change the kernel after several failures in a row.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));
/// First and longest wait before a pod is tried again whose rules alone were refused.
const BLOCKED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Failures in a row that halving explains: 2^8 pods, one of them to blame.
const HALVINGS: u32 = 8;
/// Pods in one change set while nothing fails.
pub(super) const MAX_BATCH: usize = 4096;

impl NodeState {
    /// Every rule that should be in the kernel.
    #[must_use]
    pub fn desired(&self) -> BTreeSet<Mapping> {
        let owners = self.address_owners();
        let mut desired = BTreeSet::new();
        for (uid, tenant) in &self.tenants {
            let owns = |ip: IpAddr| {
                (self.config.ipv6 || ip.is_ipv4()) && owners.get(&ip).is_none_or(|o| o == uid)
            };
            desired.extend(tenant.desired(uid, owns, &self.kernel.mappings));
        }
        desired
    }

    /// The dataplane carried a plan out, or left the kernel as it was.
    pub fn programmed(&mut self, now: Duration, plan: &Plan, outcome: Result<(), String>) {
        self.kernel.in_flight = false;
        match outcome {
            Ok(()) => {
                for mapping in &plan.to_remove {
                    self.kernel.mappings.remove(mapping);
                    let key = (mapping.protocol, mapping.host_port);
                    // clients could reach the port until now: its rest begins here
                    if self.cooling.contains(key) {
                        self.rest(now, key);
                    }
                }
                self.kernel.mappings.extend(plan.to_create.iter().cloned());
                self.kernel.intact = true;
                self.kernel.error = None;
                self.kernel.retry_at = None;
                self.kernel.failures = 0;
                self.kernel.batch = self.kernel.batch.saturating_mul(2).min(MAX_BATCH);
                for uid in creators(plan) {
                    if let Some(tenant) = self.tenants.get_mut(uid) {
                        tenant.blocked = None;
                    }
                }
                self.tell_repaired();
            }
            Err(error) => self.blame(now, plan, error),
        }
        self.converge(now);
    }

    /// One pod's rules can make a whole change set fail (a protocol that this kernel lacks, say).
    /// Smaller and smaller sets find it; it is set aside then, and all others go on.
    fn blame(&mut self, now: Duration, plan: &Plan, error: String) {
        let owners: BTreeSet<&PodUid> = creators(plan).collect();
        self.kernel.batch = (owners.len() / 2).max(1);
        if let (1, Some(uid)) = (owners.len(), owners.first())
            && let Some(tenant) = self.tenants.get_mut(*uid)
        {
            let failures = tenant
                .blocked
                .as_ref()
                .map_or(0, |blocked| blocked.failures);
            let until = now + backoff(BLOCKED, failures);
            let error = error.clone();
            tenant.blocked = Some(Blocked {
                until,
                failures: failures + 1,
                error,
            });
        }
        self.kernel.error = Some(error);
        let wait = backoff(RETRY, self.kernel.failures.saturating_sub(HALVINGS));
        self.kernel.failures += 1;
        self.kernel.retry_at = Some(now + wait);
    }

    /// Tells the pods whose damaged rules are all back.
    fn tell_repaired(&mut self) {
        let desired = self.desired();
        let damaged = std::mem::take(&mut self.kernel.damaged);
        let lacks = |uid: &PodUid| {
            let mut mine = desired.iter().filter(|mapping| mapping.owner == *uid);
            mine.any(|mapping| !self.kernel.mappings.contains(mapping))
        };
        let (waiting, back): (BTreeSet<_>, BTreeSet<_>) = damaged.into_iter().partition(lacks);
        self.kernel.damaged = waiting;
        for uid in back {
            let note = "rules of this pod had been removed or altered on the node; they are back";
            self.emit(&uid, EventKind::Repaired, note.to_owned());
        }
    }

    /// The dataplane read the kernel back. Ignored while a change is under way: what was read may
    /// be from before it.
    pub fn observed(&mut self, now: Duration, mappings: BTreeSet<Mapping>, intact: bool) {
        if self.kernel.in_flight {
            return;
        }
        let missing = self.kernel.mappings.difference(&mappings);
        let damaged: BTreeSet<PodUid> = missing.map(|mapping| mapping.owner.clone()).collect();
        self.kernel.damaged.extend(damaged);
        if !intact {
            let all = self
                .kernel
                .mappings
                .iter()
                .map(|mapping| mapping.owner.clone());
            self.kernel.damaged.extend(all.collect::<BTreeSet<_>>());
        }
        self.kernel.mappings = mappings;
        self.kernel.intact = intact;
        self.converge(now);
    }

    /// Asks for the difference, one change set at a time: everything that piles up while one is
    /// under way goes into the next together.
    pub(super) fn program(&mut self, now: Duration) {
        self.judge_rules();
        let desired = self.desired();
        if self.kernel.in_flight || self.kernel.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.kernel.retry_at = None;
        let mut plan = Plan::new(&desired, &self.kernel.mappings);
        self.set_aside(now, &mut plan);
        self.judge_rules();
        if plan.is_empty() && self.kernel.intact {
            return;
        }
        self.kernel.in_flight = true;
        self.actions.push(Action::Program(plan));
    }

    /// Leaves out of a plan what was refused lately, and more than may be tried at once. A pod that
    /// was refused alone is tried alone again, when nobody else waits.
    fn set_aside(&mut self, now: Duration, plan: &mut Plan) {
        let owners: BTreeSet<PodUid> = creators(plan).cloned().collect();
        for (uid, tenant) in &mut self.tenants {
            // it asks for nothing any more that could be refused
            if !owners.contains(uid) {
                tenant.blocked = None;
            }
        }
        let blocked = |uid: &PodUid| self.tenants.get(uid).and_then(|t| t.blocked.as_ref());
        let healthy = owners.iter().filter(|uid| blocked(uid).is_none());
        let mut chosen: BTreeSet<PodUid> = healthy.take(self.kernel.batch).cloned().collect();
        if chosen.is_empty() {
            let due = owners
                .iter()
                .filter(|uid| blocked(uid).is_none_or(|b| b.until <= now));
            let longest = due.min_by_key(|uid| blocked(uid).map(|blocked| blocked.until));
            chosen.extend(longest.cloned());
        }
        plan.to_create
            .retain(|mapping| chosen.contains(&mapping.owner));
    }

    /// When the kernel is to be asked again, if nothing else happens.
    pub(super) fn next_program(&self) -> Option<Duration> {
        if self.kernel.in_flight {
            return None;
        }
        let blocked = self
            .tenants
            .values()
            .filter_map(|tenant| tenant.blocked.as_ref());
        let due = blocked.map(|blocked| blocked.until).min();
        match (due, self.kernel.retry_at) {
            (Some(due), Some(retry)) => Some(due.max(retry)),
            (due, retry) => retry.or(due),
        }
    }

    /// Tells each pod whether the kernel stands in its way.
    fn judge_rules(&mut self) {
        let ipv6 = self.config.ipv6;
        for tenant in self.tenants.values_mut() {
            // what stands in the way before the kernel is told first
            let other = |refusal: &Refusal| refusal.kind != EventKind::DataplaneError;
            if tenant.refusal.as_ref().is_some_and(other) {
                continue;
            }
            let message = match (tenant.unservable(ipv6), &tenant.blocked) {
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
                    clear(&mut tenant.refusal, EventKind::DataplaneError);
                    continue;
                }
            };
            tenant.refusal = Some(Refusal {
                kind: EventKind::DataplaneError,
                message,
            });
        }
    }

    /// Whether every rule a pod needs is in the kernel.
    pub(super) fn is_programmed(&self, uid: &PodUid, desired: &BTreeSet<Mapping>) -> bool {
        let mine = desired.iter().filter(|mapping| mapping.owner == *uid);
        self.kernel.intact
            && mine
                .clone()
                .all(|mapping| self.kernel.mappings.contains(mapping))
    }
}

/// The pods whose mappings a plan creates.
fn creators(plan: &Plan) -> impl Iterator<Item = &PodUid> {
    plan.to_create.iter().map(|mapping| &mapping.owner)
}

fn backoff((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}
