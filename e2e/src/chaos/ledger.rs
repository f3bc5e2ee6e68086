//! What the driver does to the cluster, noted before it does it, so that a prober can tell what a
//! fault excuses from what nothing excuses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Enough to see what kind of trouble it is.
const MAX_VIOLATIONS: usize = 40;

/// Shared by the driver and every prober. Nodes and pods (by uid) are both named by text.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    notes: Mutex<Notes>,
    pub(super) calls: AtomicU64,
    pub(super) datagrams: AtomicU64,
    pub(super) messages: AtomicU64,
    pub(super) streams: AtomicU64,
    pub(super) excused_breaks: AtomicU64,
    pub(super) theft_tries: AtomicU64,
}

#[derive(Debug, Default)]
struct Notes {
    disturbed: BTreeMap<String, u64>,
    unreachable: BTreeSet<String>,
    unheld: BTreeSet<String>,
    doomed: BTreeSet<String>,
    violations: Vec<String>,
}

impl Ledger {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Established connections of this node or pod may break now.
    pub(super) fn disturb(&self, who: &str) {
        *self.notes().disturbed.entry(who.to_owned()).or_default() += 1;
    }

    /// A number that changes whenever one of these is disturbed.
    pub(super) fn disturbances(&self, node: &str, uid: &str) -> u64 {
        let notes = self.notes();
        let count = |who: &str| notes.disturbed.get(who).copied().unwrap_or_default();
        count(node) + count(uid)
    }

    /// New connections to this node or pod may fail until the round ends.
    pub(super) fn unreachable(&self, who: &str) {
        self.notes().unreachable.insert(who.to_owned());
    }

    /// Host ports of this node may be unheld until the round ends.
    pub(super) fn unheld(&self, node: &str) {
        self.notes().unheld.insert(node.to_owned());
    }

    /// The cluster has converged: what was excused is no longer.
    pub(super) fn end_round(&self) {
        let mut notes = self.notes();
        notes.unreachable.clear();
        notes.unheld.clear();
    }

    /// This pod is about to be deleted or evicted.
    pub(super) fn doom(&self, uid: &str) {
        self.notes().doomed.insert(uid.to_owned());
    }

    pub(super) fn is_doomed(&self, uid: &str) -> bool {
        self.notes().doomed.contains(uid)
    }

    /// Whether new connections to this pod may fail.
    pub(super) fn may_be_unreachable(&self, node: &str, uid: &str) -> bool {
        let notes = self.notes();
        [node, uid]
            .iter()
            .any(|who| notes.unreachable.contains(*who))
            || notes.doomed.contains(uid)
    }

    pub(super) fn may_be_unheld(&self, node: &str) -> bool {
        self.notes().unheld.contains(node)
    }

    pub(super) fn violation(&self, text: String) {
        let violations = &mut self.notes().violations;
        if violations.len() < MAX_VIOLATIONS {
            crate::progress::say(format_args!("VIOLATION: {text}"));
            violations.push(text);
        }
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.notes().violations.clone()
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
