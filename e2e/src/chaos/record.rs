//! What the driver does to the cluster, recorded before it does it. A prober reads it to decide whether
//! a failure is the effect of a fault or a violation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use std::sync::{Mutex, MutexGuard, PoisonError};

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
}

#[derive(Debug, Default)]
struct State {
    disturbed: BTreeMap<String, u64>,
    unreachable: BTreeSet<String>,
    unheld: BTreeSet<String>,
    doomed: BTreeSet<String>,
    violations: Vec<String>,
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Established connections of this node or pod may break now.
    pub(super) fn disturb(&self, who: &str) {
        *self.state().disturbed.entry(who.to_owned()).or_default() += 1;
    }

    /// A number that changes whenever one of these is disturbed.
    pub(super) fn disturbances(&self, node: &str, uid: &str) -> u64 {
        let state = self.state();
        let count = |who: &str| state.disturbed.get(who).copied().unwrap_or_default();
        count(node) + count(uid)
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

    pub(super) fn violation(&self, text: String) {
        let violations = &mut self.state().violations;
        if violations.len() < MAX_VIOLATIONS {
            crate::progress::say(format_args!("VIOLATION: {text}"));
            violations.push(text);
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.state().violations.clone()
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
