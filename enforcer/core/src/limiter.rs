//! How often events are emitted about something that happens again and again.

use std::time::Duration;

/// Shortest time between two events.
const PAUSE: Duration = Duration::from_mins(1);

/// Events of one pod at once after which its allowance is used up; client-go allows as many.
const BURST: u32 = 25;

/// The first event at once, the others together, once a minute: when the last was emitted, and what
/// happened since.
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

/// What each change by a user may say: some events at once, then one a minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowance {
    used: u32,
    /// The next event is allowed again a [`PAUSE`] later.
    since: Duration,
    left_out: u32,
}

impl Allowance {
    /// Whether one more event may be emitted now, and how many were left out before it.
    pub(crate) fn take(&mut self, now: Duration) -> Option<u32> {
        let pauses = now.saturating_sub(self.since).as_secs() / PAUSE.as_secs();
        self.used = self
            .used
            .saturating_sub(u32::try_from(pauses).unwrap_or(u32::MAX));
        if self.used >= BURST {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        if pauses > 0 || self.used == 0 {
            self.since = now;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}
