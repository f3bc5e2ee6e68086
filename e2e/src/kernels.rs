//! `e2e kernels`: the namespace suites (data plane, holding, CNI files) on kernels of other Debian
//! releases, in an emulated machine whose files are this machine's.
//!
//! ```text
//! debian    a release's kernel package --> modules, initramfs
//! guest     boots it in qemu; the test programs, built here, run there
//! outcome   their output --> a row of the table
//! ```

mod debian;
mod guest;
mod outcome;

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::artifacts::packages;
use crate::progress::{Step, out};
use crate::{compatibility, paths, process};

pub use self::debian::Series;
use self::outcome::SuiteOutcome;

const BUILD_LIMIT: Duration = Duration::from_mins(30);
/// The suites: the test target, and the folder of its package, in which it runs.
const SUITES: [(&str, &str); 3] = [
    ("netns", "enforcer/dataplane"),
    ("hold", "enforcer"),
    ("cni", "enforcer"),
];

/// Arguments of `e2e kernels`.
#[derive(Debug, Args)]
pub struct Options {
    /// Which kernel; all of them by default. Can be repeated.
    #[arg(long, value_enum)]
    kernel: Vec<Series>,
    /// Which suite: netns (data plane), hold (keeper) or cni (CNI results); all by default. Can be
    /// repeated.
    #[arg(long, value_parser = ["netns", "hold", "cni"])]
    suite: Vec<String>,
    /// How many times slower than a real machine the emulated one is: the tests' limits grow with it.
    #[arg(long, default_value_t = guest::SLOWNESS)]
    slowness: u32,
    /// Only tests whose name contains one of these texts.
    filter: Vec<String>,
}

/// A test program that runs in the guest.
#[derive(Debug)]
struct Suite {
    name: &'static str,
    program: PathBuf,
    folder: PathBuf,
}

/// Runs the suites on each kernel and prints the table. Fails if a test failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options {
        kernel,
        suite,
        slowness,
        filter,
    } = options;
    packages::ensure()?;
    packages::ensure_file("/usr/bin/qemu-system-x86_64", "qemu-system-x86")?;
    packages::ensure_file(debian::BUSYBOX, "busybox-static")?;
    let wanted = |name: &str| suite.is_empty() || suite.iter().any(|one| one == name);
    let suites = build(&wanted)?;
    let kernels = if kernel.is_empty() {
        Series::ALL.to_vec()
    } else {
        kernel.clone()
    };
    let mut rows = Vec::new();
    for series in kernels {
        let kernel = debian::kernel(series)?;
        let step = Step::start(format!("suites on Linux {}", kernel.version));
        let logs = guest::run(&kernel, &suites, *slowness, filter)?;
        step.done("run");
        for (suite, log) in logs {
            let outcome = SuiteOutcome::parse(&log);
            if filter.is_empty() && outcome.complete {
                compatibility::record(&outcome.row(&kernel.version, suite))?;
            }
            rows.push((kernel.version.clone(), suite, outcome));
        }
    }
    out!("{}", outcome::table(&rows));
    let failed: usize = rows.iter().map(|(_, _, one)| one.failed.len()).sum();
    let incomplete = rows.iter().any(|(_, _, one)| !one.complete);
    if failed > 0 || incomplete {
        bail!(
            "{failed} tests failed{}; the logs are in {}",
            if incomplete {
                ", and a suite did not end"
            } else {
                ""
            },
            guest::logs().display()
        );
    }
    Ok(())
}

/// Builds the test programs of these suites.
fn build(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Suite>> {
    let step = Step::start("the test programs");
    let mut cargo = process::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::root());
    cargo.args(["test", "--no-run", "--message-format=json"]);
    cargo.args(["-p", "portmapping-dataplane", "-p", "enforcer"]);
    for (name, _) in SUITES.iter().filter(|(name, _)| wanted(name)) {
        cargo.args(["--test", name]);
    }
    let messages = process::run(&mut cargo, BUILD_LIMIT).context("build the test programs")?;
    let mut suites = Vec::new();
    for (name, folder) in SUITES.into_iter().filter(|(name, _)| wanted(name)) {
        let built = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == name)
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        suites.push(Suite {
            name,
            program: built.with_context(|| format!("cargo built no test program {name}"))?,
            folder: paths::root().join(folder),
        });
    }
    step.done("built");
    Ok(suites)
}
