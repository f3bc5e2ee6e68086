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

/// The most that one look may use up: far more than any takes while the machine runs.
const LONGEST_LOOK: Duration = Duration::from_secs(10);

/// A limit that passes only while the machine runs: one that stood still for a minute, as virtual
/// machines do, has had no minute to do what is waited for.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
    last_look: Instant,
}

impl Patience {
    /// As much as this.
    #[must_use]
    pub fn of(limit: Duration) -> Self {
        Self {
            left: limit,
            last_look: Instant::now(),
        }
    }

    /// What is left, to be asked once a look.
    pub fn left(&mut self) -> Duration {
        let passed = self.last_look.elapsed().min(LONGEST_LOOK);
        self.last_look = Instant::now();
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
