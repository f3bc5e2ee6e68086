//! What the keeper is asked, and what it answers.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::PortKey;

use super::Ports;
use super::ledger::{Hold, KEEPER_RETRY, PortState};

impl Ports {
    /// Takes the ports that the keeper is to bind, and those it is to close.
    pub(crate) fn ask_keeper(&mut self, now: Duration) -> (Vec<PortKey>, Vec<PortKey>) {
        let (mut to_hold, mut to_close) = (Vec::new(), Vec::new());
        if self.keeper_retry.is_some_and(|at| now < at) {
            return (to_hold, to_close);
        }
        self.keeper_retry = None;
        for key in self.keeper_due.due(now) {
            if self.change(key, PortState::asked) {
                to_hold.push(key);
            } else if self.change(key, PortState::rest_over) {
                to_close.push(key);
            }
        }
        (to_hold, to_close)
    }

    /// Ends the quarantines that are over.
    pub(crate) fn end_quarantines(&mut self, now: Duration) {
        for key in self.quarantines.due(now) {
            self.change(key, PortState::rest_over);
        }
    }

    /// When `ask_keeper` or `end_quarantines` has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let keeper = self.keeper_retry.or(self.keeper_due.next());
        keeper.into_iter().chain(self.quarantines.next()).min()
    }

    /// The keeper bound the port. A port that no pod needs by now is closed again.
    pub(crate) fn bound(&mut self, now: Duration, key: PortKey) {
        self.change(key, |port| port.bound(now));
    }

    /// The keeper could not bind the port, because another process has it. Returns whether a mapped
    /// pod lost the hold of its port: it is asked for again then, and a pod that is not mapped gets
    /// another port.
    pub(crate) fn bind_refused(
        &mut self,
        now: Duration,
        key: PortKey,
        ruled: bool,
        quarantine: Duration,
    ) -> bool {
        self.change(key, |port| port.bind_refused(now, ruled, quarantine));
        matches!(self.ledger.state(key).hold(), Some(Hold::Lost { .. }))
    }

    /// The kernel did not bind the port, and no other process has it: it is asked for again.
    pub(crate) fn bind_failed(&mut self, now: Duration, key: PortKey) {
        self.change(key, |port| port.bind_failed(now));
    }

    /// Whether the keeper holds the port.
    pub(crate) fn is_held(&self, key: PortKey) -> bool {
        self.ledger.state(key).hold() == Some(Hold::Held)
    }

    /// The keeper could not be asked about these; what it holds it still holds.
    pub(crate) fn keeper_failed(&mut self, now: Duration, keys: &[PortKey]) {
        for key in keys {
            self.change(*key, |port| port.keeper_failed(now));
        }
        self.keeper_retry = Some(now + KEEPER_RETRY);
    }

    /// The keeper holds exactly these: it may be new, or have received ports of another one. One that nothing
    /// needs is closed.
    pub(crate) fn keeper_listed(&mut self, now: Duration, held: &BTreeSet<PortKey>) {
        let mut all: BTreeSet<PortKey> = self.ledger.iter().map(|(key, _)| key).collect();
        all.extend(held);
        for key in all {
            self.change(key, |port| port.listed(now, held.contains(&key)));
        }
        self.keeper_retry = None;
    }

    /// The keeper closed these.
    pub(crate) fn closed(&mut self, now: Duration, keys: &[PortKey], cooldown: Duration) {
        for key in keys {
            self.change(*key, |port| port.closed(now, cooldown));
        }
    }
}
