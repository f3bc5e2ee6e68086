//! Benchmarks of portmapping and its peers in one run. Only ratios within a round are compared,
//! because a busy machine slows both participants equally.
//!
//! It owns what is measured and how it is compared, and may use every crate of the product; no crate knows
//! of it.
//!
//! ```text
//! main (WHAT, rounds) --> one module per benchmark --> lab, netns (places) --> report (bars, JSON, history)
//!                                   |                                             ^
//!                                   +--> ours, peers (participants) --> stats ----+
//! ```

mod admission;
mod burst;
mod control;
mod dataplane;
mod hold;
mod lab;
mod lists;
mod netns;
mod ours;
mod peers;
mod probe;
mod report;
mod startup;
mod stats;
mod webhook;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

use e2e::artifacts::packages;
use e2e::cluster::roles::Role;
use e2e::paths;
use e2e::progress::say;
use report::Report;
use stats::Rounds;

/// Measure us and the peers in one run; fails where a bar is missed.
#[derive(Debug, Parser)]
#[command(
    name = "e2e-bench",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(flatten)]
    options: Option<Options>,
    #[command(subcommand)]
    internal: Option<Internal>,
}

/// Internal roles: this program owns the clusters that it starts.
#[derive(Debug, Subcommand)]
enum Internal {
    #[command(subcommand, hide = true)]
    Internal(Role),
}

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// Write the rows to this file as well.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many turns each participant has; the default takes some minutes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// How many pods start one by one; for startup.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pods: Option<u16>,
    /// Decides the order of turns; the default changes with each run and is printed.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// The benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// The cost per packet, with 1 to 20,000 mappings.
    Dataplane,
    /// The cost of a change with 20,000 mappings present, with iptables 2,000.
    Control,
    /// 125 pods at once, until all are reachable.
    Burst,
    /// Holding as many ports as the limit of open files allows: time and memory.
    Hold,
    /// The time of pod starts, from the runtime's CNI result to a rule and a published result.
    Startup,
    /// What the admission policies cost the API server, by the number of annotations.
    Admission,
    /// What it costs the API server when 200 nodes list their pods after it was down.
    Lists,
    /// The admission webhook and one written with controller-runtime.
    Webhook,
}

impl Options {
    /// One round, enough to test a benchmark.
    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            what: What::Dataplane,
            json: None,
            rounds: Some(1),
            pods: None,
            seed: Some(1),
        }
    }

    /// Returns the requested number of rounds, or `usual`. Prints the seed that repeats their
    /// order.
    #[must_use]
    fn rounds(&self, usual: u16) -> Rounds {
        let seed = self.seed.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            now.map_or(0, |now| u64::from(now.subsec_nanos()))
        });
        let count = self.rounds.unwrap_or(usual);
        say(format_args!("{count} rounds, --seed {seed}"));
        Rounds::new(usize::from(count), seed)
    }
}

/// Makes an empty folder for sockets and inputs of a benchmark.
fn folder(name: &str) -> Result<PathBuf> {
    let folder = paths::root().join("target/e2e/bench").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    Ok(folder)
}

fn main() -> ExitCode {
    let Cli { options, internal } = Cli::parse();
    let done = match (internal, options) {
        (Some(Internal::Internal(role)), _) => role.run(),
        (None, Some(options)) => run(&options),
        (None, None) => Ok(()), // clap refuses to run without either
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints the table, writes the file. A missed bar is an error.
fn run(options: &Options) -> Result<()> {
    packages::ensure()?;
    packages::ensure_file("/usr/lib/cni/portmap", "containernetworking-plugins")?;
    let report: Report = match options.what {
        What::Dataplane => dataplane::run(options)?,
        What::Control => control::run(options)?,
        What::Burst => burst::run(options)?,
        What::Hold => hold::run(options)?,
        What::Startup => startup::run(options)?,
        What::Admission => admission::run(options)?,
        What::Lists => lists::run(options)?,
        What::Webhook => webhook::run(options)?,
    };
    report.finish(options.json.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_program_measures_or_runs_a_role_but_not_both() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' '));
        let options = parse("e2e-bench --rounds 3 hold")
            .expect("a benchmark")
            .options;
        assert!(options.is_some_and(|options| options.what == What::Hold));
        let internal = parse("e2e-bench internal owner /x")
            .expect("a role")
            .internal;
        assert!(internal.is_some());
        assert!(parse("e2e-bench").is_err());
        assert!(parse("e2e-bench --rounds 3 internal owner /x").is_err());
    }
}
