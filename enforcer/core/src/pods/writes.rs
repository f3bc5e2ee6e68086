//! The writes of a pod: the one under way, those that the watch may still show, and the waits between them.

use std::collections::VecDeque;
use std::time::Duration;

use super::unmapped::{DELETION, Refusal};
use crate::action::{Publication, Record};

/// What was written for a pod, and what was said about it in events.
#[derive(Clone, Debug, Default)]
pub(crate) struct Publish {
    pub(super) in_flight: Option<Publication>,
    /// Versions of the pod that our writes have replaced and the watch may still show. They would
    /// make us write again.
    pub(super) outdated: VecDeque<String>,
    pub(super) retry_at: Option<Duration>,
    /// The pod has ended and is being deleted: a write before would have no reader.
    pub(super) quiet_until: Option<Duration>,
    /// The last write was based on a version that is not the newest.
    pub(super) conflicted: bool,
    pub(super) failures: u32,
    /// The last refusal that an event reported.
    pub(super) last_event: Option<Refusal>,
    /// The last result that an event reported, or that the API showed first.
    pub(super) announced: Option<String>,
}

impl Publish {
    /// Whether one of our writes has replaced this version of the pod. A watch shows versions in
    /// order, so the first that is not outdated ends the wait for older ones.
    pub(crate) fn is_outdated(&mut self, version: &String) -> bool {
        let outdated = self.outdated.contains(version);
        if !outdated {
            self.forget_outdated();
        }
        outdated
    }

    /// No version that is still to come is outdated.
    pub(crate) fn forget_outdated(&mut self) {
        self.outdated.clear();
    }

    /// The API shows this record. `first`: for the first time, and the writer of a result in it
    /// has announced that. `newer`: in another version than before.
    pub(crate) fn seen(&mut self, record: &Record, first: bool, newer: bool) {
        if first {
            self.announced.clone_from(&record.annotation);
        }
        if newer && self.conflicted {
            self.conflicted = false;
            self.retry_at = None;
        }
    }

    /// The pod has ended and is being deleted. A finalizer may keep it.
    pub(crate) fn wait_for_deletion(&mut self, now: Duration) {
        self.quiet_until = Some(now + DELETION);
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.retry_at.into_iter().chain(self.quiet_until).min()
    }
}
