//! Decides how often rules are read because another program changes tables. Pure.

use std::time::{Duration, Instant};

use portmapping_shared::Backoff;

/// Shortest time between two reads.
const BETWEEN: Duration = Duration::from_millis(100);
/// The pause after a read lasts this many times as long as the read took.
const REST: u32 = 9;
/// Waits while another program damages our rules repeatedly.
const REPEATED: Backoff = Backoff {
    first: BETWEEN,
    longest: Duration::from_secs(5),
};
/// Damage does not count as repeated if it comes later than this after the last one.
const STREAK_END: Duration = Duration::from_secs(30);

/// Computes when the next read may start.
#[derive(Debug, Default)]
pub(super) struct Pace {
    hinted: Option<Instant>,
    /// The end of the last read, and how long it took.
    last_read: Option<(Instant, Duration)>,
    /// When damage was last found, and how often in a row.
    damaged: Option<(Instant, u32)>,
}

impl Pace {
    pub(super) fn hinted(&mut self, now: Instant) {
        self.hinted = Some(now);
    }

    pub(super) fn record_read(&mut self, now: Instant, took: Duration, damaged: bool) {
        self.last_read = Some((now, took));
        if damaged {
            let before = self
                .damaged
                .filter(|(last, _)| now.saturating_duration_since(*last) < STREAK_END);
            self.damaged = Some((now, before.map_or(1, |(_, times)| times.saturating_add(1))));
        }
    }

    /// The earliest time for a read, not before `now`.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let hinted = self.hinted.map(|at| at + BETWEEN);
        let last_read = self.last_read.map(|(at, took)| at + took * REST);
        let damaged = self.damaged.and_then(|(at, times)| {
            // the first repetition is repaired at once
            let repetitions = times.checked_sub(1)?;
            Some(at + REPEATED.after(repetitions, 0.0))
        });
        [hinted, last_read, damaged]
            .into_iter()
            .flatten()
            .fold(now, Instant::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn first_read_is_at_once_and_the_others_are_spaced() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.next(start), start);
        pace.hinted(start);
        pace.record_read(start + 10 * MS, 10 * MS, false);
        assert_eq!(pace.next(start + 11 * MS), start + 100 * MS);
        // a slow read is followed by a longer pause
        pace.record_read(start + 300 * MS, 200 * MS, false);
        assert_eq!(pace.next(start + 301 * MS), start + 2100 * MS);
    }

    #[test]
    fn repeated_damage_is_repaired_with_back_off_up_to_a_limit() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..12 {
            pace.record_read(now, MS, true);
            let next = pace.next(now);
            waits.push(next - now);
            now = next;
        }
        assert_eq!(waits[0], 9 * MS);
        assert!(waits.is_sorted(), "{waits:?}");
        assert_eq!(waits.last(), Some(&REPEATED.longest));
        // after a time without damage the back-off starts again
        now += STREAK_END;
        pace.record_read(now, MS, true);
        assert_eq!(pace.next(now), now + 9 * MS);
    }
}
