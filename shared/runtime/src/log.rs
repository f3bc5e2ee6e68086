//! Log lines on standard error, as JSON for machines or as text for people.
//!
//! In a container, standard error is a pipe that the container runtime reads. While the runtime stands
//! still, as in its restart, the pipe fills up. The program must go on then: lines that find no room are lost.

use std::io;
use std::os::fd::AsFd;

use clap::{Args, ValueEnum};
use rustix::fs::{FileType, OFlags};
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

/// Room for some thousands of lines: the most that the kernel allows without a privilege.
const PIPE_SIZE: usize = 1 << 20;

/// Starts the log. Later calls in the same process (tests) have no effect.
pub fn init(args: &LogArgs) {
    // an error leaves a log that may wait for its reader
    let _ = never_wait(io::stderr());
    let lines = fmt::layer().with_writer(io::stderr).with_target(false);
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

/// Makes writes to a pipe fail where they would wait. Other files stay as they are: a terminal is shared
/// with other programs, and waits for none of them.
fn never_wait(file: impl AsFd) -> rustix::io::Result<()> {
    let mode = rustix::fs::fstat(&file)?.st_mode;
    if FileType::from_raw_mode(mode) != FileType::Fifo {
        return Ok(());
    }
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    rustix::pipe::fcntl_setpipe_size(&file, PIPE_SIZE).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_takes_many_lines_and_then_refuses_more() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        never_wait(&writer).unwrap();
        let line = [b'x'; 256];
        let mut lines = 0;
        let error = loop {
            match writer.write_all(&line) {
                Ok(()) => lines += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert_eq!(lines, PIPE_SIZE / line.len());
        // it goes on when the reader does
        reader.read_exact(&mut [0; 8192]).unwrap();
        writer.write_all(&line).unwrap();
    }
}
