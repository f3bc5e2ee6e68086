//! `e2e conformance`: Kubernetes' own conformance tests, on a cluster with the product in which every pod of
//! every test namespace asks for a mapping.
//!
//! ```text
//! list      tests.txt --> what runs, what does not and why
//! report    what ginkgo writes --> the table
//! ```

mod list;
mod report;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use regex::Regex;
use serde_json::Value;

use self::list::List;
use self::report::Report;
use crate::artifacts::conformance as suite;
use crate::cluster::Cluster;
use crate::compatibility::{self, Conformance, Run};
use crate::progress::{Step, out, say};
use crate::{Config, Minor, install, paths, process};

/// All tests take 22 minutes on two processors.
const LIMIT: Duration = Duration::from_hours(3);
/// The version of the tests' module. Older ones have no `MutatingAdmissionPolicy` by default.
const KUBERNETES: Minor = Minor::V1_36;
/// Who publishes mappings.
const ENFORCER: &str = "system:serviceaccount:portmapping-system:enforcer";

/// Arguments of `e2e conformance`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only tests whose name matches this regular expression. Can be repeated.
    #[arg(long, value_name = "REGEX")]
    focus: Vec<Regex>,
    /// How many tests run at the same time.
    #[arg(long, default_value_t = 4)]
    processes: u8,
}

/// Runs the tests and prints the table. Fails if a test failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { focus, processes } = options;
    let list = List::read(&suite::sources().join("tests.txt"))?;
    let chosen: Vec<&str> = list.chosen(focus).collect();
    ensure!(!chosen.is_empty(), "no test's name matches {focus:?}");
    let programs = suite::programs()?;
    let images = suite::images(&programs)?;
    let mut cluster = Cluster::start(&Config {
        name: "conformance".to_owned(),
        kubernetes: KUBERNETES,
        ..Config::default()
    })?;
    install::install(&mut cluster)?;
    cluster.load_images(&images)?;
    name_images(&cluster)?;
    let policies = suite::sources().join("every-pod-asks.yaml");
    cluster.kubectl_run([Path::new("apply"), Path::new("-f"), &policies])?;
    let folder = paths::root().join("target/e2e/conformance");
    let step = Step::start(format!("{} of Kubernetes' own tests", chosen.len()));
    let ran = ginkgo(&cluster, &programs, &folder, &chosen, *processes);
    let file = folder.join("report.json");
    let report = match (Report::read(&file), ran) {
        (Ok(report), _) => report,
        (Err(error), Ok(())) | (Err(_), Err(error)) => return Err(error),
    };
    step.done("run");
    let row = Conformance {
        kubernetes: KUBERNETES.version()?,
        passed: report.passed(),
        failed: report.failed().map(|one| one.name.clone()).collect(),
        refused: list.refused(),
        skipped: list.skipped(),
        mapped: mapped_pods(&cluster.audit_log()?)?,
    };
    out!("{}", report.table(&row));
    let missing: Vec<_> = report.missing(&chosen).collect();
    judge(&row, &missing, focus.is_empty())
        .with_context(|| format!("{} has all that the tests wrote", folder.display()))?;
    if focus.is_empty() {
        compatibility::record(&Run::Conformance(row))?;
    }
    cluster.stop()
}

/// Fails unless all tests have run and passed, and, if they are the whole list, with mapped pods.
fn judge(row: &Conformance, missing: &[&str], whole: bool) -> Result<()> {
    ensure!(
        missing.is_empty(),
        "these tests did not run: {}",
        missing.join("; ")
    );
    let failed = row.failed.len();
    ensure!(failed == 0, "{failed} tests failed");
    ensure!(
        row.mapped > 0 || !whole,
        "no pod of the tests was mapped: they have shown nothing of the product"
    );
    Ok(())
}

/// Gives images the other names under which the tests know them.
fn name_images(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes()? {
        for (image, name) in suite::NAMES {
            let tag = ["ctr", "-n", "k8s.io", "images", "tag", image, name];
            let output = cluster.exec(&node, &tag)?;
            let wrote = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "name {image} {name}: {wrote}");
        }
    }
    Ok(())
}

/// Runs the tests in the network of the control plane, from which nodes and pods can be reached.
fn ginkgo(
    cluster: &Cluster,
    programs: &Path,
    folder: &Path,
    chosen: &[&str],
    processes: u8,
) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", folder.display()));
        }
        _ => fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?,
    }
    let mut ginkgo = cluster.command("control-plane", programs.join("ginkgo"))?;
    ginkgo.arg(format!("--procs={processes}"));
    ginkgo.args(["--no-color", "--timeout=3h", "--json-report=report.json"]);
    ginkgo.arg(format!("--output-dir={}", folder.display()));
    ginkgo.arg(format!("--focus={}", list::pattern(chosen)));
    ginkgo.arg(programs.join("e2e.test")).arg("--");
    let kubeconfig = ginkgo
        .get_envs()
        .find_map(|(name, value)| (name == "KUBECONFIG").then_some(value?))
        .context("a command on a host without KUBECONFIG")?
        .to_owned();
    ginkgo.arg("--kubeconfig").arg(kubeconfig);
    ginkgo.args(["--provider=skeleton", "--disable-log-dump=true"]);
    say(format_args!(
        "what the tests write is in {}",
        folder.display()
    ));
    process::run_long("Kubernetes' own tests", &mut ginkgo, LIMIT)
}

/// How many pods got a mapping, by the API server's audit log.
fn mapped_pods(audit: &Path) -> Result<usize> {
    let file = File::open(audit).with_context(|| format!("open {}", audit.display()))?;
    let mut pods = BTreeSet::new();
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("read {}", audit.display()))?;
        if !line.contains(ENFORCER) {
            continue;
        }
        let call: Value = serde_json::from_str(&line).context("parse a line of the audit log")?;
        let object = &call["objectRef"];
        if call["user"]["username"] == ENFORCER
            && call["verb"] == "patch"
            && object["resource"] == "pods"
            && object["subresource"] == "status"
            && object["namespace"] != install::NAMESPACE
            && call["responseStatus"]["code"] == 200
        {
            pods.insert(format!("{}/{}", object["namespace"], object["name"]));
        }
    }
    Ok(pods.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_run_that_mapped_no_pod_fails() {
        let run = |mapped, failed: &[&str]| Conformance {
            mapped,
            failed: failed.iter().map(|&name| name.to_owned()).collect(),
            ..Conformance::default()
        };
        assert!(judge(&run(3, &[]), &[], true).is_ok());
        assert!(judge(&run(0, &[]), &[], true).is_err());
        assert!(judge(&run(0, &[]), &[], false).is_ok()); // a test without pods
        assert!(judge(&run(3, &["[sig-a] x"]), &[], true).is_err());
        assert!(judge(&run(3, &[]), &["[sig-a] y"], false).is_err());
    }
}
