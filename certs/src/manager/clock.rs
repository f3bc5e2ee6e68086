//! The time of day, watched for steps by a clock that has none.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

/// Drift between two looks that is no step: time daemons slew by far less.
const TOLERANCE: Duration = Duration::from_secs(10);

/// A wall clock, and what both clocks said when it was last looked at.
#[derive(Debug)]
pub(super) struct Clock {
    wall: fn() -> OffsetDateTime,
    last: Option<(OffsetDateTime, Instant)>,
}

impl Clock {
    pub(super) fn new(wall: fn() -> OffsetDateTime) -> Self {
        Self { wall, last: None }
    }

    pub(super) fn now(&self) -> OffsetDateTime {
        (self.wall)()
    }

    /// By how much the wall clock was set since the last call; negative is backwards.
    pub(super) fn step(&mut self) -> Option<time::Duration> {
        let (wall, tick) = (self.now(), Instant::now());
        let (wall_before, tick_before) = self.last.replace((wall, tick))?;
        let passed = time::Duration::try_from(tick.duration_since(tick_before)).ok()?;
        let step = (wall - wall_before) - passed;
        (step.unsigned_abs() > TOLERANCE).then_some(step)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_step_is_seen_once_and_time_that_passes_is_none() {
        static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
        let set = |by: i64| SECONDS.fetch_add(by, Ordering::Relaxed);
        let mut clock = Clock::new(|| {
            OffsetDateTime::from_unix_timestamp(SECONDS.load(Ordering::Relaxed)).unwrap()
        });
        assert_eq!(clock.step(), None, "nothing to compare with");
        set(3600);
        tokio::time::advance(Duration::from_hours(1)).await;
        assert_eq!(clock.step(), None, "an hour passed");
        set(-86_400);
        assert_eq!(clock.step(), Some(time::Duration::days(-1)));
        assert_eq!(clock.step(), None, "told once");
        set(60);
        assert_eq!(clock.step(), Some(time::Duration::minutes(1)));
    }
}
