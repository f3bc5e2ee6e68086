//! The wait between attempts at something that fails.

use std::time::Duration;

/// Doubles the first wait with each failure, up to the longest.
pub(crate) fn backoff((first, longest): (Duration, Duration), failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(longest)
}
