//! Ports and the keeper: asking, answers, conflicts, letting go.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::PodUid;

use super::NodeState;
use crate::action::{Action, EventKind};
use crate::allocator::PortKey;
use crate::pod::{self, Hold, Refusal};

/// How long to wait before the keeper is asked again after a failure or a refusal.
const KEEPER_RETRY: Duration = Duration::from_secs(2);

impl NodeState {
    /// The keeper answered: each port is bound, or why not.
    pub fn held(&mut self, now: Duration, outcomes: Vec<(PortKey, Result<(), String>)>) {
        for (key, outcome) in outcomes {
            let Some((uid, lease)) = self.lessee(key).map(|(uid, lease)| (uid.clone(), lease))
            else {
                // the pod went while the keeper was at it: the port rests already
                continue;
            };
            match outcome {
                Ok(()) => {
                    if let Some(tenant) = self.tenants.get_mut(&uid) {
                        tenant.lease.insert(lease, Hold::Held);
                        if tenant.all_held() {
                            clear(&mut tenant.refusal, EventKind::PortConflict);
                        }
                    }
                }
                Err(why) => self.refused(now, &uid, key, &why),
            }
        }
        self.converge(now);
    }

    /// The keeper could not be asked; what it holds it still holds.
    pub fn keeper_failed(&mut self, now: Duration, keys: &[PortKey]) {
        for key in keys {
            self.releasing.remove(key);
            let lessee = self.lessee(*key).map(|(uid, lease)| (uid.clone(), lease));
            if let Some((uid, lease)) = lessee
                && let Some(hold) = self
                    .tenants
                    .get_mut(&uid)
                    .and_then(|tenant| tenant.lease.get_mut(&lease))
                && *hold == Hold::Asked
            {
                *hold = Hold::Missing;
            }
        }
        self.keeper_retry = Some(now + KEEPER_RETRY);
        self.converge(now);
    }

    /// The keeper let go of these: anyone may have them now.
    pub fn released(&mut self, now: Duration, keys: &[PortKey]) {
        for key in keys {
            if self.releasing.remove(key) {
                self.cooling.remove(*key);
                self.pool.give_back(*key);
            }
        }
        self.converge(now);
    }

    /// A keeper's complete list, after it was started anew: whatever is missing is asked for again.
    pub fn keeper_listed(&mut self, now: Duration, held: &BTreeSet<PortKey>) {
        for tenant in self.tenants.values_mut() {
            for (lease, hold) in &mut tenant.lease {
                *hold = if held.contains(&pod::key(lease)) {
                    Hold::Held
                } else {
                    Hold::Missing
                };
            }
        }
        self.releasing.clear();
        self.keeper_retry = None;
        self.converge(now);
    }

    /// Asks for every missing hold, and lets go of what has rested and left the kernel.
    pub(super) fn ask_holds(&mut self, now: Duration) {
        if self.keeper_retry.is_some_and(|at| now < at) {
            return;
        }
        self.keeper_retry = None;
        let again = self.lost_retry.is_some_and(|at| at <= now);
        if again {
            self.lost_retry = None;
        }
        let mut wanted = Vec::new();
        for tenant in self.tenants.values_mut() {
            for (lease, hold) in &mut tenant.lease {
                if *hold == Hold::Missing || again && *hold == Hold::Lost {
                    *hold = Hold::Asked;
                    wanted.push(pod::key(lease));
                }
            }
        }
        if !wanted.is_empty() {
            self.actions.push(Action::Hold(wanted));
        }
        let rested: Vec<PortKey> = self
            .cooling
            .due(now)
            .filter(|key| self.may_release(*key))
            .collect();
        if !rested.is_empty() {
            self.releasing.extend(&rested);
            self.actions.push(Action::Release(rested));
        }
    }

    /// A port whose rules are still there stays held however long it has rested.
    fn may_release(&self, key: PortKey) -> bool {
        let ruled = || {
            self.kernel
                .mappings
                .iter()
                .any(|m| (m.protocol, m.host_port) == key)
        };
        !self.releasing.contains(&key) && !ruled()
    }

    /// When the next port has rested long enough.
    pub(super) fn next_release(&self) -> Option<Duration> {
        self.cooling
            .by_end()
            .find(|(_, key)| self.may_release(*key))
            .map(|(end, _)| end)
    }

    /// Ends quarantines; cooling ports are ended by the keeper's answer.
    pub(super) fn wake_resting(&mut self, now: Duration) {
        let due: Vec<PortKey> = self.quarantined.due(now).collect();
        for key in due {
            self.quarantined.remove(key);
            self.pool.give_back(key);
        }
    }

    /// A stranger has the port. A pod that is not mapped yet gets another one; a pod that is keeps
    /// its rules (they win over the stranger's socket) and is told.
    fn refused(&mut self, now: Duration, uid: &PodUid, key: PortKey, why: &str) {
        let mapped = self
            .kernel
            .mappings
            .iter()
            .any(|m| (m.protocol, m.host_port) == key);
        let quarantine = now + self.config.quarantine;
        let Some(tenant) = self.tenants.get_mut(uid) else {
            return;
        };
        if mapped {
            for (lease, hold) in &mut tenant.lease {
                if pod::key(lease) == key {
                    *hold = Hold::Lost;
                }
            }
            tenant.refusal = Some(Refusal {
                kind: EventKind::PortConflict,
                message: format!(
                    "host port {}/{} cannot be held: {why}; find the process that took it with \
                     ss -tulpn on the node; it is asked for again every {} s",
                    key.1,
                    key.0,
                    KEEPER_RETRY.as_secs()
                ),
            });
            self.lost_retry = Some(now + KEEPER_RETRY);
        } else {
            tenant.lease.retain(|lease, _| pod::key(lease) != key);
            self.quarantined.insert(key, quarantine);
        }
    }
}

/// Clears a refusal of one kind and leaves others.
pub(super) fn clear(refusal: &mut Option<Refusal>, kind: EventKind) {
    if refusal.as_ref().is_some_and(|refusal| refusal.kind == kind) {
        *refusal = None;
    }
}
