//! What a person sees while the harness works: one line per step, with the time since the start.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Instant;

static START: OnceLock<Instant> = OnceLock::new();

/// Prints a line with the seconds since the first call.
pub fn say(text: impl Display) {
    let start = START.get_or_init(Instant::now);
    // Nobody left to read is no reason to stop.
    let _ = writeln!(
        std::io::stderr(),
        "[{:6.1} s] {text}",
        start.elapsed().as_secs_f64()
    );
}

/// A step that says how long it took.
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
        say(format_args!(
            "{}: {outcome} ({:.1} s)",
            self.name,
            self.start.elapsed().as_secs_f64()
        ));
    }
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
