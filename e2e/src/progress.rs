//! What a user sees while the harness works: one line per step, with the time since the start.

use std::fmt::Display;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();
/// The steps that are done; a process has some dozens.
static DONE: Mutex<Vec<(String, Duration)>> = Mutex::new(Vec::new());

/// Prints a line with the seconds since the first call.
pub fn say(text: impl Display) {
    let start = START.get_or_init(Instant::now);
    // The reader may have gone; that is no reason to stop.
    let _ = writeln!(
        std::io::stderr(),
        "[{:6.1} s] {text}",
        start.elapsed().as_secs_f64()
    );
}

/// A step, printed with its time when it is done.
#[derive(Debug)]
pub struct Step {
    name: String,
    start: Instant,
}

impl Step {
    /// Starts the clock; prints nothing yet.
    #[must_use]
    pub fn start(name: impl Into<String>) -> Self {
        START.get_or_init(Instant::now);
        Self {
            name: name.into(),
            start: Instant::now(),
        }
    }

    /// Prints the step's name, its outcome and its time.
    pub fn done(self, outcome: impl Display) {
        let took = self.start.elapsed();
        say(format_args!(
            "{}: {outcome} ({:.1} s)",
            self.name,
            took.as_secs_f64()
        ));
        let mut all = DONE.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((self.name, took));
    }
}

/// The steps that took a second or more, longest first, and the time since the first step.
#[must_use]
pub fn parts() -> (Vec<(String, Duration)>, Duration) {
    let all = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let long = all.iter().filter(|(_, took)| took.as_secs() > 0);
    let mut long: Vec<_> = long.cloned().collect();
    long.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    (long, START.get_or_init(Instant::now).elapsed())
}

/// Like `println!`, but a reader who has left (`| head`) is no reason to panic.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub use out;
