//! Log lines on standard error, as JSON for machines or as text for people.

use std::io;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

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
    pub filter: EnvFilterText,
    /// Format of log lines
    #[arg(
        long = "log-format",
        env = "PORTMAPPING_LOG_FORMAT",
        value_enum,
        default_value = "json"
    )]
    pub format: LogFormat,
}

/// Filter directives that were parsed once, so that a mistake ends the program before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFilterText(String);

impl std::str::FromStr for EnvFilterText {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        EnvFilter::try_new(text).map(|_| Self(text.to_owned()))
    }
}

/// Starts the log. Later calls in the same process (tests) have no effect.
pub fn init(args: &LogArgs) {
    let filter = EnvFilter::new(&args.filter.0);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false);
    // an error means that the log was started before
    let _ = match args.format {
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
}
