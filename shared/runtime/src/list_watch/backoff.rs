//! How long to wait before a failed watch is started again. What starts in this time is not seen, so
//! the waits are short. All nodes of a cluster may wait for the same API server, so the waits grow and
//! have jitter.

use std::time::Duration;

use portmapping_shared::Backoff;
use tokio::time::Instant;

/// The longest wait: an API server that starts refuses its clients for a few seconds (it does not know
/// their roles yet), and 5,000 nodes come back within this time.
const WAITS: Backoff = Backoff {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(2),
};
/// A watch that lasted this long had not failed, even if it brought no event.
const SETTLED: Duration = Duration::from_secs(10);
/// HTTP status for a resource version that is too old. Only a new list helps, at once.
const GONE: u16 = 410;

/// The waits between attempts.
#[derive(Debug, Default)]
pub(super) struct WatchBackoff {
    failures: u32,
    last_failure: Option<Instant>,
    last_gone: Option<Instant>,
}

impl WatchBackoff {
    /// Records a failure, with the HTTP status if the server gave one, and returns how long to wait.
    /// `jitter` is a share of the wait that is added.
    pub(super) fn after(&mut self, code: Option<u16>, now: Instant, jitter: f64) -> Duration {
        let settled = |last: Option<Instant>| last.is_none_or(|last| now > last + SETTLED);
        if code == Some(GONE) {
            // a list may come from a server that lags behind: another list at once would not help
            if settled(self.last_gone.replace(now)) {
                return Duration::ZERO;
            }
        }
        if settled(self.last_failure.replace(now)) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        WAITS.after(self.failures, jitter)
    }

    /// Records that the watch brought an event.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests;
