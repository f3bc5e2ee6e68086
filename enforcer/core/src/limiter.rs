//! Telling people of something that goes on and on: at once, then no more than now and then.

use std::time::Duration;

/// Shortest time between two tellings.
pub(crate) const PAUSE: Duration = Duration::from_mins(1);

/// How often one thing happened since it was last told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter {
    /// Nothing is told before.
    open_at: Option<Duration>,
    suppressed: u32,
}

impl Limiter {
    /// It happened; whether to tell it now.
    pub(crate) fn record(&mut self, now: Duration) -> bool {
        if self.suppressed == 0 && self.open_at.is_none_or(|at| at <= now) {
            self.open_at = Some(now + PAUSE);
            return true;
        }
        self.suppressed = self.suppressed.saturating_add(1);
        false
    }

    /// How often it happened untold, once that is to be told.
    pub(crate) fn due(&mut self, now: Duration) -> Option<u32> {
        if self.next().is_none_or(|at| at > now) {
            return None;
        }
        self.open_at = Some(now + PAUSE);
        Some(std::mem::take(&mut self.suppressed))
    }

    /// When `due` will have something to tell.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.open_at.filter(|_| self.suppressed > 0)
    }
}
