//! Another controller that writes a request over each result, as continuous deployment tools do with
//! bare pods.
//! Without a limit the two would write as fast as the API server answers.

use std::time::Duration;

use portmapping_shared::contract::ANNOTATION;

use super::facts::PodFacts;

/// Results that are published again at once.
const AT_ONCE: u32 = 5;
/// Shortest time between two results after that. A result that stood for so long ends the contest.
const PAUSE: Duration = Duration::from_mins(1);

/// How often a result was replaced by the request for the same ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contest {
    resets: u32,
    published_at: Duration,
    /// The result is not published again before.
    pub(super) restore_at: Option<Duration>,
}

impl Contest {
    /// A result is written.
    pub(super) fn publishing(&mut self, now: Duration) {
        self.published_at = now;
        self.restore_at = None;
    }

    /// The wait for the next result is over.
    pub(super) fn end_wait(&mut self, now: Duration) {
        self.restore_at.take_if(|at| *at <= now);
    }

    /// The result was replaced by the request for the same ports; whether that is contested.
    pub(crate) fn reset(&mut self, now: Duration) -> bool {
        let next = self.published_at + PAUSE;
        if next <= now {
            self.resets = 0;
        }
        self.resets = self.resets.saturating_add(1);
        let contested = self.resets > AT_ONCE;
        self.restore_at = contested.then_some(next);
        contested
    }
}

/// The note of `AnnotationContested`.
pub(super) fn contested(facts: &PodFacts) -> String {
    let manager = facts.annotation_manager.as_deref();
    format!(
        "field manager {:?} replaces the result in annotation {ANNOTATION} by the request again and \
         again; the host ports stay mapped, and the result is published at most once a minute: \
         configure it to ignore this annotation of pods",
        manager.unwrap_or("unknown")
    )
}
