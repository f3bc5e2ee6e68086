//! When a broken watch is tried again. Pods that start meanwhile are not mapped: so soon, but with
//! every node of a cluster waiting for the same API server, not at once and not all together.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::utils::{Backoff as _, ResetTimerBackoff};
use kube::runtime::watcher::{self, ExponentialBackoff};
use tokio::time::Instant;

/// The first wait; each is twice the one before, and up to twice as long by chance.
const FIRST: Duration = Duration::from_millis(200);
/// The last one: an API server that starts refuses its clients for some seconds (it does not know
/// their roles yet), and five thousand nodes come back within this time.
const LAST: Duration = Duration::from_secs(2);
/// What lasted this long was not broken.
const SETTLED: Duration = Duration::from_secs(10);
/// HTTP status of a history that is no longer kept: only a new list helps, and it may be asked for.
const GONE: u16 = 410;

/// The waits between attempts.
pub(super) struct Again {
    growing: ResetTimerBackoff<ExponentialBackoff>,
    gone: Option<Instant>,
}

impl Default for Again {
    fn default() -> Self {
        let growing = ExponentialBuilder::default()
            .with_min_delay(FIRST)
            .with_max_delay(LAST)
            .with_factor(2.0)
            .with_jitter()
            .without_max_times();
        Self {
            growing: ResetTimerBackoff::new(growing.into(), SETTLED),
            gone: None,
        }
    }
}

impl Again {
    /// How long to wait after this error.
    pub(super) fn after(&mut self, error: &watcher::Error) -> Duration {
        if matches!(error, watcher::Error::WatchError(status) if status.code == GONE) {
            let now = Instant::now();
            let before = self.gone.replace(now);
            // a list may come from a server that is behind: then asking at once again is no use
            if before.is_none_or(|before| now > before + SETTLED) {
                return Duration::ZERO;
            }
        }
        self.growing.next().unwrap_or(LAST)
    }

    /// The watch brought something.
    pub(super) fn works(&mut self) {
        self.growing.reset();
    }
}

#[cfg(test)]
mod tests;
