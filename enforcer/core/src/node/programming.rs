//! Rules: what should be in the kernel, what is, and the one change set between them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::{Mapping, PodUid};

use super::NodeState;
use super::holding::clear;
use crate::action::{Action, EventKind};
use crate::plan::Plan;
use crate::pod::Refusal;

/// First and longest wait between tries to change the kernel.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

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
                for uid in std::mem::take(&mut self.kernel.damaged) {
                    let note =
                        "rules of this pod had been removed or altered on the node; they are back";
                    self.emit(&uid, EventKind::Repaired, note.to_owned());
                }
            }
            Err(error) => {
                self.kernel.error = Some(error);
                let doublings = self.kernel.failures.min(10);
                let wait = RETRY.0.saturating_mul(1 << doublings).min(RETRY.1);
                self.kernel.failures += 1;
                self.kernel.retry_at = Some(now + wait);
            }
        }
        self.converge(now);
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
        let desired = self.desired();
        self.judge_rules(&desired);
        if self.kernel.in_flight || self.kernel.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.kernel.retry_at = None;
        let plan = Plan::new(&desired, &self.kernel.mappings);
        if plan.is_empty() && self.kernel.intact {
            return;
        }
        self.kernel.in_flight = true;
        self.actions.push(Action::Program(plan));
    }

    /// Tells each pod whether the kernel stands in its way.
    fn judge_rules(&mut self, desired: &BTreeSet<Mapping>) {
        let error = self.kernel.error.clone();
        let ipv6 = self.config.ipv6;
        let lacking: BTreeSet<&PodUid> = desired
            .difference(&self.kernel.mappings)
            .map(|mapping| &mapping.owner)
            .collect();
        for (uid, tenant) in &mut self.tenants {
            match (&error, lacking.contains(uid), tenant.unservable(ipv6)) {
                (_, _, Some(lease)) => {
                    let at = lease
                        .host_ip
                        .map(|ip| format!(" on hostIP {ip}"))
                        .unwrap_or_default();
                    let message = format!(
                        "container port {}/{}{at} cannot be mapped: the pod has no address of a \
                         family that the host IP and this node's packet filter both serve",
                        lease.container_port, lease.protocol,
                    );
                    tenant.refusal = Some(Refusal {
                        kind: EventKind::DataplaneError,
                        message,
                    });
                }
                (Some(error), true, None) => {
                    tenant.refusal = Some(Refusal {
                        kind: EventKind::DataplaneError,
                        message: format!("the node's rules could not be changed: {error}"),
                    });
                }
                (_, _, None) => clear(&mut tenant.refusal, EventKind::DataplaneError),
            }
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
