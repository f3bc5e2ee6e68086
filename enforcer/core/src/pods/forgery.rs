//! Results that no enforcer wrote. Such a result never decides where traffic goes; it is reported
//! and overwritten.

use std::collections::VecDeque;
use std::time::Duration;

use portmapping_shared::contract::ANNOTATION;

use crate::limiter::Limiter;

/// Annotations remembered as written by us; a watch is never that many writes behind.
const MAX_WRITTEN: usize = 8;

/// What is needed to recognise a forged result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forgery {
    /// Annotations written for this pod, the latest last: late events may still show any of them.
    pub(super) written: VecDeque<String>,
    /// The forged result that stands in the API.
    pub(super) found: Option<String>,
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
        Some(forged("host ports", &suppressed_note(times)))
    }
}

/// The note of `ForgedResult`.
pub(super) fn forged(foreign: &str, suppressed: &str) -> String {
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
