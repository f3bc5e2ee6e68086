//! How long to wait before a failed watch is started again. Pods that start in this time are not
//! mapped, so the waits are short. All nodes of a cluster may wait for the same API server, so the
//! waits grow and have jitter.

use std::time::{Duration, Instant};

use kube::runtime::watcher;
use portmapping_shared::Backoff;

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
    /// Records an error and returns how long to wait. `jitter` is a share of the wait that is added.
    pub(super) fn after(&mut self, error: &watcher::Error, now: Instant, jitter: f64) -> Duration {
        if matches!(error, watcher::Error::WatchError(status) if status.code == GONE) {
            // a list may come from a server that lags behind: another list at once would not help
            if settled(self.last_gone.replace(now), now) {
                return Duration::ZERO;
            }
        }
        self.after_failure(now, jitter)
    }

    /// Records a failure that only time helps against, and returns how long to wait.
    pub(super) fn after_failure(&mut self, now: Instant, jitter: f64) -> Duration {
        if settled(self.last_failure.replace(now), now) {
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

fn settled(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|last| now > last + SETTLED)
}

#[cfg(test)]
mod tests;
