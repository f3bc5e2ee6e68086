//! Waiting with a deadline and a name.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What a probe found.
#[derive(Debug)]
pub enum Probe<T> {
    /// The end of the wait.
    Done(T),
    /// Not yet; the text says what is missing and ends up in the error when time is over.
    Missing(String),
}

/// The most that one poll counts for: far more than any takes while the machine runs.
const LONGEST_POLL: Duration = Duration::from_secs(10);

/// A limit that passes only while the machine runs. A virtual machine may be suspended for a minute;
/// that minute does not count.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    last_poll: Instant,
}

impl Patience {
    /// As much as this.
    #[must_use]
    pub fn of(limit: Duration) -> Self {
        Self {
            left: limit,
            last_poll: Instant::now(),
        }
    }

    /// What is left. Call it once per poll.
    pub fn left(&mut self) -> Duration {
        let passed = self.last_poll.elapsed().min(LONGEST_POLL);
        self.last_poll = Instant::now();
        self.left = self.left.saturating_sub(passed);
        self.left
    }
}

/// Probes every `interval` until done. `what` completes the sentence "waited 30 s for ...".
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut probe: impl FnMut() -> Result<Probe<T>>,
) -> Result<T> {
    let mut patience = Patience::of(limit);
    loop {
        let missing = match probe()? {
            Probe::Done(value) => return Ok(value),
            Probe::Missing(missing) => missing,
        };
        if patience.left().is_zero() {
            bail!("waited {} s for {what}: {missing}", limit.as_secs());
        }
        thread::sleep(interval);
    }
}
