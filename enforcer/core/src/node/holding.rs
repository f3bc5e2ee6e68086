//! Ports and the keeper: asking, answers, conflicts, letting go.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::PodUid;

use super::NodeState;
use crate::action::{Action, EventKind};
use crate::pods::state::{Hold, Refusal};
use crate::ports::PortKey;

/// How long to wait before the keeper is asked again after a failure or a refusal.
const KEEPER_RETRY: Duration = Duration::from_secs(2);

impl NodeState {
    /// The keeper answered: each port is bound, or why not.
    pub fn held(&mut self, now: Duration, outcomes: Vec<(PortKey, Result<(), String>)>) {
        for (key, outcome) in outcomes {
            let owner = self.owner(key).map(|(uid, _)| uid.clone());
            match (owner, outcome) {
                (Some(uid), Ok(())) => {
                    self.set_hold(key, Hold::Held);
                    if let Some(pod) = self.pods.get_mut(&uid)
                        && pod.all_held()
                    {
                        clear(&mut pod.refusal, EventKind::PortConflict);
                    }
                }
                (Some(uid), Err(why)) => self.refused(now, &uid, key, &why),
                // its lease ended while the keeper was at it; where its rest is over, too, the
                // keeper would keep it for nobody
                (None, Ok(())) if self.pool.is_idle(key) || self.quarantined.remove(key) => {
                    self.pool.seize(key);
                    self.release_early.insert(key);
                    self.rest(now, key, Duration::ZERO);
                }
                (None, _) => {}
            }
        }
        self.converge(now);
    }

    /// The keeper could not be asked; what it holds it still holds.
    pub fn keeper_failed(&mut self, now: Duration, keys: &[PortKey]) {
        for key in keys {
            if self.releasing.remove(key) {
                self.rest(now, *key, Duration::ZERO);
            }
            if self.hold_of(*key) == Some(Hold::Asked) {
                self.set_hold(*key, Hold::Missing);
            }
        }
        self.keeper_retry = Some(now + KEEPER_RETRY);
        self.converge(now);
    }

    /// The keeper let go of these: anyone may have them now.
    pub fn released(&mut self, now: Duration, keys: &[PortKey]) {
        for key in keys {
            if !self.releasing.remove(key) {
                continue;
            }
            if self.release_early.remove(key) {
                // its rest was cut short for the static port alone
                let until = now + self.config.cooldown;
                self.quarantined.insert(*key, until);
            } else {
                self.came_free |= self.pool.give_back(*key);
            }
        }
        self.converge(now);
    }

    /// A keeper's complete list, after it was started anew: whatever is missing is asked for again.
    pub fn keeper_listed(&mut self, now: Duration, held: &BTreeSet<PortKey>) {
        let leased: Vec<PortKey> = self.owners.keys().copied().collect();
        for key in leased {
            let known = held.contains(&key);
            self.set_hold(key, if known { Hold::Held } else { Hold::Missing });
        }
        for key in std::mem::take(&mut self.releasing) {
            self.rest(now, key, Duration::ZERO);
        }
        self.keeper_retry = None;
        self.converge(now);
    }

    /// Asks for every missing hold, and lets go of what has rested.
    pub(super) fn ask_holds(&mut self, now: Duration) {
        if self.keeper_retry.is_some_and(|at| now < at) {
            return;
        }
        self.keeper_retry = None;
        let mut wanted: Vec<PortKey> = self.missing.iter().copied().collect();
        if self.lost_retry.is_some_and(|at| at <= now) {
            self.lost_retry = None;
            wanted.extend(&self.lost);
        }
        for key in &wanted {
            self.missing.remove(key);
            self.lost.remove(key);
            let owner = self.owner(*key).map(|(uid, lease)| (uid.clone(), lease));
            if let Some((uid, lease)) = owner
                && let Some(pod) = self.pods.get_mut(&uid)
            {
                pod.lease.insert(lease, Hold::Asked);
            }
        }
        if !wanted.is_empty() {
            self.actions.push(Action::Hold(wanted));
        }
        let rested: Vec<PortKey> = self.cooling.due(now).collect();
        if !rested.is_empty() {
            for key in &rested {
                self.cooling.remove(*key);
                self.previous.forget(*key);
            }
            self.releasing.extend(&rested);
            self.actions.push(Action::Release(rested));
        }
    }

    /// When the next port has rested long enough.
    pub(super) fn next_release(&self) -> Option<Duration> {
        self.cooling.next()
    }

    /// The port is kept from everybody for so long, counted from when no rule uses it any more:
    /// until then clients reach its old pod.
    pub(super) fn rest(&mut self, now: Duration, key: PortKey, rest: Duration) {
        if self.kernel.ruled(key) {
            self.draining.insert(key, rest);
        } else {
            self.cooling.insert(key, now + rest);
        }
    }

    /// Rules of these ports may be gone: the rest of those that have none begins.
    pub(super) fn begin_rests(&mut self, now: Duration, keys: impl IntoIterator<Item = PortKey>) {
        for key in keys {
            if !self.kernel.ruled(key)
                && let Some(rest) = self.draining.remove(&key)
            {
                self.cooling.insert(key, now + rest);
            }
        }
    }

    /// Ends quarantines; other rests are ended by the keeper's answer.
    pub(super) fn wake_quarantined(&mut self, now: Duration) {
        let due: Vec<PortKey> = self.quarantined.due(now).collect();
        for key in due {
            self.quarantined.remove(key);
            self.came_free |= self.pool.give_back(key);
        }
    }

    /// A stranger has the port. A pod that is not mapped yet gets another one; a pod that is keeps
    /// its rules (they win over the stranger's socket) and is told.
    fn refused(&mut self, now: Duration, uid: &PodUid, key: PortKey, why: &str) {
        if self.kernel.ruled(key) {
            self.set_hold(key, Hold::Lost);
            if let Some(pod) = self.pods.get_mut(uid) {
                pod.refusal = Some(Refusal {
                    kind: EventKind::PortConflict,
                    message: format!(
                        "host port {}/{} cannot be held: {why}; find the process that took it \
                         with ss -tulpn on the node; it is asked for again every {} s",
                        key.1,
                        key.0,
                        KEEPER_RETRY.as_secs()
                    ),
                });
            }
            self.lost_retry = Some(now + KEEPER_RETRY);
        } else if let Some((_, lease)) = self.owner(key) {
            self.drop_lease(uid, &lease);
            self.quarantined.insert(key, now + self.config.quarantine);
            self.update_waiting(uid);
        }
    }
}

/// Clears a refusal of one kind and leaves others.
pub(super) fn clear(refusal: &mut Option<Refusal>, kind: EventKind) {
    if refusal.as_ref().is_some_and(|refusal| refusal.kind == kind) {
        *refusal = None;
    }
}
