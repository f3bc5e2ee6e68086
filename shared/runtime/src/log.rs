//! Log lines on standard error, as JSON for machines or as text for people.

use std::io;

use clap::{Args, ValueEnum};
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
