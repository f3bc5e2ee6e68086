//! Events about something that happens again and again: the first at once, the others together,
//! once a minute.

use std::time::Duration;

/// Shortest time between two events.
const PAUSE: Duration = Duration::from_mins(1);

/// When the last event was emitted, and what happened since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter {
    /// No event is emitted before.
    open_at: Option<Duration>,
    suppressed: u32,
}

impl Limiter {
    /// It happened; whether to emit an event now.
    pub(crate) fn record(&mut self, now: Duration) -> bool {
        if self.suppressed == 0 && self.open_at.is_none_or(|at| at <= now) {
            self.open_at = Some(now + PAUSE);
            return true;
        }
        self.suppressed = self.suppressed.saturating_add(1);
        false
    }

    /// How often it happened without an event, once an event for that is due.
    pub(crate) fn due(&mut self, now: Duration) -> Option<u32> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        self.open_at = Some(now + PAUSE);
        Some(std::mem::take(&mut self.suppressed))
    }

    /// When `due` has an answer.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.open_at.filter(|_| self.suppressed > 0)
    }
}
