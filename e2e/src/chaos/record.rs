//! What the driver does to the cluster, recorded before it does it. A prober reads it to decide whether
//! a failure is the effect of a fault or a violation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Result, ensure};

/// Enough to see the cause; more would fill the screen.
const MAX_VIOLATIONS: usize = 40;

/// Shared by the driver and every prober. Nodes are named by name, pods by uid.
#[derive(Debug, Default)]
pub(super) struct Record {
    state: Mutex<State>,
    pub(super) calls: AtomicU64,
    pub(super) datagrams: AtomicU64,
    pub(super) messages: AtomicU64,
    pub(super) streams: AtomicU64,
    pub(super) excused_breaks: AtomicU64,
    pub(super) theft_tries: AtomicU64,
    /// Of containers of the product that were seen.
    pub(super) starts: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// How often a fault that ends connections began or ended.
    disturbances: BTreeMap<String, u64>,
    /// Where such a fault has not ended.
    disturbed: BTreeSet<String>,
    unreachable: BTreeSet<String>,
    unheld: BTreeSet<String>,
    doomed: BTreeSet<String>,
    /// Ids of containers.
    killed: BTreeSet<String>,
    /// How often each node was rebooted.
    reboots: BTreeMap<String, u64>,
    violations: Vec<String>,
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Established connections of this node or pod may break until the round ends.
    pub(super) fn disturb(&self, who: &str) {
        let mut state = self.state();
        *state.disturbances.entry(who.to_owned()).or_default() += 1;
        state.disturbed.insert(who.to_owned());
    }

    /// The faults that end connections of this node or pod, as of now.
    pub(super) fn disturbances(&self, node: &str, uid: &str) -> Disturbances {
        let state = self.state();
        let who = [node, uid];
        let counts = who.map(|who| state.disturbances.get(who).copied().unwrap_or_default());
        Disturbances {
            count: counts.iter().sum(),
            under_way: who.iter().any(|who| state.disturbed.contains(*who)),
        }
    }

    /// New connections to this node or pod may fail until the round ends.
    pub(super) fn unreachable(&self, who: &str) {
        self.state().unreachable.insert(who.to_owned());
    }

    /// Host ports of this node may be unheld until the round ends.
    pub(super) fn unheld(&self, node: &str) {
        self.state().unheld.insert(node.to_owned());
    }

    /// The cluster has converged: from now on a failure is a violation again.
    pub(super) fn end_round(&self) {
        let mut state = self.state();
        state.unreachable.clear();
        state.unheld.clear();
        for who in std::mem::take(&mut state.disturbed) {
            *state.disturbances.entry(who).or_default() += 1;
        }
    }

    /// This pod is about to be deleted or evicted.
    pub(super) fn doom(&self, uid: &str) {
        self.state().doomed.insert(uid.to_owned());
    }

    pub(super) fn is_doomed(&self, uid: &str) -> bool {
        self.state().doomed.contains(uid)
    }

    /// Whether new connections to this pod may fail.
    pub(super) fn may_be_unreachable(&self, node: &str, uid: &str) -> bool {
        let state = self.state();
        [node, uid]
            .iter()
            .any(|who| state.unreachable.contains(*who))
            || state.doomed.contains(uid)
    }

    pub(super) fn may_be_unheld(&self, node: &str) -> bool {
        self.state().unheld.contains(node)
    }

    /// This container is about to be killed.
    pub(super) fn kill(&self, container: String) {
        self.state().killed.insert(container);
    }

    pub(super) fn is_killed(&self, container: &str) -> bool {
        self.state().killed.contains(container)
    }

    /// All containers of this node are about to be lost.
    pub(super) fn reboot(&self, node: &str) {
        *self.state().reboots.entry(node.to_owned()).or_default() += 1;
    }

    pub(super) fn reboots(&self, node: &str) -> u64 {
        self.state().reboots.get(node).copied().unwrap_or_default()
    }

    pub(super) fn violation(&self, text: String) {
        let violations = &mut self.state().violations;
        if violations.len() < MAX_VIOLATIONS {
            crate::progress::say(format_args!("VIOLATION: {text}"));
            violations.push(text);
        }
    }

    /// Fails if something was not done at all, so that its violations could not show.
    pub(super) fn suffices(&self, thief: bool) -> Result<()> {
        for (what, counter) in [
            ("new connections", &self.calls),
            ("datagrams", &self.datagrams),
            ("connections that stay", &self.streams),
            ("messages", &self.messages),
            ("starts of the product's programs", &self.starts),
        ] {
            ensure!(counted(counter) > 0, "nothing was proven: no {what}");
        }
        ensure!(
            !thief || counted(&self.theft_tries) > 0,
            "nothing was proven: no tries to steal a port"
        );
        Ok(())
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
    }
}

/// The faults that end connections of a pod, as of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disturbances {
    /// Changes when one begins, and when it ends.
    count: u64,
    under_way: bool,
}

/// Which faults an open connection has outlived. Only a later one explains its end.
#[derive(Debug)]
pub(super) struct Outlived(u64);

impl Outlived {
    /// A connection that is about to be made.
    pub(super) fn new(now: Disturbances) -> Self {
        Self(now.count)
    }

    /// A message that was sent at a moment with these faults was answered. During a fault that proves nothing.
    pub(super) fn answered(&mut self, sent: Disturbances) {
        if !sent.under_way {
            self.0 = sent.count;
        }
    }

    /// Whether one of the faults until now may have ended the connection.
    pub(super) fn may_end(&self, now: Disturbances) -> bool {
        now.under_way || now.count != self.0
    }
}

/// Counts one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What was counted.
pub(super) fn counted(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_explains_the_end_of_a_connection_until_that_has_outlived_it() {
        let record = Record::default();
        let now = || record.disturbances("node", "uid");
        let mut outlived = Outlived::new(now());
        assert!(!outlived.may_end(now()), "there was no fault");
        let before = now();
        record.disturb("node");
        assert!(outlived.may_end(now()));
        // an answer during the fault, and one to a message from before it
        outlived.answered(now());
        outlived.answered(before);
        record.end_round();
        assert!(outlived.may_end(now()), "its end may be noticed late");
        outlived.answered(now());
        assert!(!outlived.may_end(now()), "it has outlived the fault");
        record.disturb("uid");
        assert!(outlived.may_end(now()), "another fault");
        record.end_round();
        outlived.answered(now());
        record.disturb("other node");
        assert!(!outlived.may_end(now()), "the fault of another node");
    }
}
