//! Results that no enforcer wrote. Such a result never decides where traffic goes; it is reported
//! and overwritten.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use portmapping_shared::LeasedPort;
use portmapping_shared::annotation::{self, Value};
use portmapping_shared::contract::ANNOTATION;

use super::facts::Want;
use super::state::PodState;
use crate::limiter::Limiter;

/// Annotations remembered as written by us; a watch is never that many writes behind.
const MAX_WRITTEN: usize = 8;

/// What is needed to recognise a forged result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forgery {
    /// Annotations written for this pod, the latest last: late events may still show any of them.
    written: VecDeque<String>,
    /// The forged result that stands in the API.
    found: Option<String>,
    pub(super) events: Limiter,
}

impl Forgery {
    /// Remembers an annotation as ours.
    pub(super) fn record_written(&mut self, value: String) {
        self.written.retain(|known| *known != value);
        self.written.push_back(value);
        if self.written.len() > MAX_WRITTEN {
            self.written.pop_front();
        }
    }

    /// Whether the API shows a result that no enforcer wrote.
    pub(super) fn is_found(&self) -> bool {
        self.found.is_some()
    }

    /// The note of an event that was held back and is due.
    pub(crate) fn suppressed_note(&mut self, now: Duration) -> Option<String> {
        let times = self.events.due(now)?;
        Some(note("host ports", &suppressed_note(times)))
    }
}

impl PodState {
    /// Checks the result in the API. Returns the note of the event to emit. `first`: the API shows
    /// the pod for the first time.
    ///
    /// A result that we wrote is not forged, however old it is. The same is true for a result of an
    /// earlier enforcer.
    pub(crate) fn check_result(
        &mut self,
        now: Duration,
        leases: &BTreeSet<LeasedPort>,
        first: bool,
    ) -> Option<String> {
        let record = &self.facts.as_ref()?.record;
        let value = record.annotation.clone().unwrap_or_default();
        let ours = self.forgery.written.contains(&value);
        let result = annotation::classify(&value) == Value::Result;
        if ours || !result || !matches!(self.want, Want::Ports(_)) {
            self.forgery.found = None;
            return None;
        }
        if first && self.is_earlier_result(&value, leases) {
            self.forgery.record_written(value);
            return None;
        }
        let Some(foreign) = self.foreign_port(&value, leases) else {
            self.forgery.found = None;
            return None;
        };
        if self.forgery.found.as_ref() == Some(&value) {
            return None;
        }
        self.forgery.found = Some(value);
        self.forgery.events.record(now).then(|| note(&foreign, ""))
    }
}

fn note(foreign: &str, suppressed: &str) -> String {
    format!(
        "annotation {ANNOTATION} named {foreign} that this pod does not have{suppressed}; no \
         traffic was sent there, and the annotation is overwritten with the real ports: find out \
         who may write it"
    )
}

/// What an event says of those that were held back before it.
pub(crate) fn suppressed_note(times: u32) -> String {
    format!(" ({times} more times since the last event)")
}
