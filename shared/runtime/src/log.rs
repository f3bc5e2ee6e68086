//! Log lines on standard error, as JSON for machines or as text for people.
//!
//! In a container, standard error is a pipe that the container runtime reads. While the runtime stands
//! still, as in its restart, the pipe fills up. The program must go on then: lines that find no room are lost.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Mutex;

use clap::{Args, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::PIPE_BUF;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, registry};

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Plain text.
    Text,
}

/// Flags of the log, to flatten into those of a program.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// What to log: a level, or directives such as `info,kube=debug`
    #[arg(long = "log", env = "PORTMAPPING_LOG", default_value = "info")]
    pub filter: Targets,
    /// Format of log lines
    #[arg(
        long = "log-format",
        env = "PORTMAPPING_LOG_FORMAT",
        value_enum,
        default_value = "json"
    )]
    pub format: LogFormat,
}

/// Starts the log. Later calls in the same process (tests) have no effect.
pub fn init(args: &LogArgs) {
    let lines = fmt::layer().with_target(false);
    let lines = lines.with_writer(Mutex::new(Impatient::new(io::stderr())));
    let lines = match args.format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // an error means that the log was started before
    let _ = registry().with(args.filter.clone()).with(lines).try_init();
}

/// How long a line waits for a reader. While the reader stands still, only the first one does.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};
const NO_PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Writes lines to a file as long as it has room, and drops them while it has none. The file stays as it is:
/// other processes may write to it, too.
struct Impatient<W> {
    file: W,
    /// It had no room last time.
    is_full: bool,
    /// The last line is not complete.
    is_cut: bool,
}

impl<W: Write + AsFd> Impatient<W> {
    fn new(file: W) -> Self {
        Self {
            file,
            is_full: false,
            is_cut: false,
        }
    }

    /// Whether the file takes [`PIPE_BUF`] bytes at once.
    fn has_room(&mut self) -> bool {
        let patience = if self.is_full { NO_PATIENCE } else { PATIENCE };
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let ready = rustix::event::poll(&mut fds, Some(&patience));
        self.is_full = !ready.is_ok_and(|ready| ready > 0);
        !self.is_full
    }
}

impl<W: Write + AsFd> Write for Impatient<W> {
    /// Takes one line, all of it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let end: &[u8] = if self.is_cut { b"\n" } else { b"" };
        for chunk in end.chunks(1).chain(line.chunks(PIPE_BUF)) {
            if !self.has_room() {
                break;
            }
            self.file.write_all(chunk)?;
            self.is_cut = !chunk.ends_with(b"\n");
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_log_that_nobody_reads_loses_lines_and_does_not_stop_the_program() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Impatient::new(writer);
        let begun = Instant::now();
        let filler = "x".repeat(2 * PIPE_BUF);
        for n in 0..1_000 {
            writeln_at_once(&mut log, &format!("{n} {filler}"));
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "it waits");
        let mut text = vec![0; 1 << 20];
        let length = reader.read(&mut text).unwrap();
        let before = String::from_utf8(text[..length].to_vec()).unwrap();
        assert!(before.starts_with("0 xxx"), "{before:.20}");
        assert!(!before.ends_with('\n'), "no line was cut");
        // the reader goes on: so does the log, at the start of a line
        writeln_at_once(&mut log, "after");
        drop(log);
        let mut after = String::new();
        reader.read_to_string(&mut after).unwrap();
        assert!(after.ends_with("\nafter\n"), "{after:.20}");
    }

    fn writeln_at_once(log: &mut Impatient<io::PipeWriter>, line: &str) {
        log.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
