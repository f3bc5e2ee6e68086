//! How long to wait before something that failed is tried again.

use std::time::Duration;

/// Waits that double from the first to the longest. Pure: the caller counts the failures, chooses
/// the jitter and sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after one failure.
    pub first: Duration,
    /// No wait is longer, before jitter is added.
    pub longest: Duration,
}

impl Backoff {
    /// Returns the wait after this many failures in a row; none after no failure.
    ///
    /// `jitter` is a share of the wait, drawn by the caller: 0.2 makes it a fifth longer, -0.2 a
    /// fifth shorter. It keeps clients that failed together from trying again together.
    #[must_use]
    pub fn after(self, failures: u32, jitter: f64) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 2_u32.saturating_pow(doublings);
        let wait = self.first.saturating_mul(factor).min(self.longest);
        // a jitter that is no number, or makes the wait negative, counts for nothing
        Duration::try_from_secs_f64(wait.as_secs_f64() * (1.0 + jitter)).unwrap_or(wait)
    }
}

#[cfg(test)]
mod tests;
