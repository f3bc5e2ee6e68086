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

/// Probes every `interval` until done. `what` completes the sentence "waited 30 s for ...".
pub fn until<T>(
    what: &str,
    limit: Duration,
    interval: Duration,
    mut probe: impl FnMut() -> Result<Probe<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let missing = match probe()? {
            Probe::Done(value) => return Ok(value),
            Probe::Missing(missing) => missing,
        };
        if Instant::now() >= end {
            bail!("waited {} s for {what}: {missing}", limit.as_secs());
        }
        thread::sleep(interval);
    }
}
