//! `e2e compatibility`: the tables of docs/compatibility.md, from what the runs of the small suite, of the
//! kernels' suites and of Kubernetes' own tests have left. A failed run of the first and the last leaves no row.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::paths;

/// A run that has a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "run", rename_all = "kebab-case")]
pub enum Run {
    /// The small suite on a cluster.
    Small(Small),
    /// A whole suite on an emulated machine.
    Kernel(Kernel),
    /// Kubernetes' own conformance tests.
    Conformance(Conformance),
}

/// What the small suite has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Small {
    /// What connects the pods, as `--cni` takes it.
    pub cni: String,
    /// The version of every Kubernetes component.
    pub kubernetes: String,
    /// The version of the container runtime.
    pub containerd: String,
    /// kube-proxy's mode.
    pub proxy_mode: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The backend that `auto` chose.
    pub auto: String,
    /// The other one, if it was forced and worked.
    pub forced: Option<String>,
    /// Clients that the pod does not see by their own address.
    pub other_address: Vec<String>,
    /// What a `NetworkPolicy` that names the client did.
    pub policy: String,
}

/// What a suite has shown on a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The release of the kernel.
    pub kernel: String,
    /// The name of the suite.
    pub suite: String,
    /// How many tests passed.
    pub passed: usize,
    /// Test -> what the kernel lacks.
    pub skipped: BTreeMap<String, String>,
    /// Tests that failed.
    pub failed: Vec<String>,
}

/// What Kubernetes' own conformance tests have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conformance {
    /// The version of the tests and of every Kubernetes component.
    pub kubernetes: String,
    /// How many tests passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: Vec<String>,
    /// What the product refuses -> how many tests do that, and were not run.
    #[serde(default)]
    pub refused: BTreeMap<String, usize>,
    /// Reason -> how many tests were not run for another one.
    pub skipped: BTreeMap<String, usize>,
    /// How many pods of the tests were mapped.
    pub mapped: usize,
}

impl Run {
    /// The same combination has the same file.
    fn file(&self) -> PathBuf {
        let name = match self {
            Self::Small(small) => {
                format!(
                    "small-{}-{}-{}-{}",
                    small.cni, small.kubernetes, small.proxy_mode, small.containerd
                )
            }
            Self::Kernel(kernel) => format!("kernel-{}-{}", kernel.kernel, kernel.suite),
            Self::Conformance(run) => format!("conformance-{}", run.kubernetes),
        };
        folder().join(format!("{name}.json"))
    }
}

fn folder() -> PathBuf {
    paths::root().join("target/e2e/compatibility")
}

/// Leaves the row of a run.
pub fn record(run: &Run) -> Result<()> {
    let file = run.file();
    fs::create_dir_all(folder()).with_context(|| format!("create {}", folder().display()))?;
    let text = serde_json::to_vec_pretty(run).context("encode a row")?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}

/// The tables of the runs so far.
pub(crate) fn tables() -> Result<String> {
    let mut files: Vec<PathBuf> = match fs::read_dir(folder()) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(), // no run yet
    };
    files.sort();
    let mut runs = Vec::new();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let run = serde_json::from_slice(&text);
        runs.push(run.with_context(|| format!("parse {}", file.display()))?);
    }
    Ok(print(&runs))
}

fn print(runs: &[Run]) -> String {
    let mut text = "| CNI | Kubernetes | containerd | kube-proxy | kernel | backend | other address | NetworkPolicy that names the client |\n\
         |---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for run in runs {
        if let Run::Small(small) = run {
            let _ = writeln!(text, "{}", small.row());
        }
    }
    text += "\n| kernel | suite | tests | passed | skipped | failed |\n|---|---|---|---|---|---|\n";
    for run in runs {
        if let Run::Kernel(kernel) = run {
            let _ = writeln!(text, "{}", kernel.row());
        }
    }
    text += "\n| Kubernetes' own tests | passed | failed | refused by portmapping | skipped | mapped pods |\n\
         |---|---|---|---|---|---|\n";
    for run in runs {
        if let Run::Conformance(conformance) = run {
            let _ = writeln!(text, "{}", conformance.row());
        }
    }
    text
}

impl Small {
    /// Returns the row of the table.
    #[must_use]
    pub fn row(&self) -> String {
        let Self {
            cni,
            kubernetes,
            containerd,
            proxy_mode,
            kernel,
            auto,
            forced,
            other_address,
            policy,
        } = self;
        let forced = forced
            .iter()
            .fold(String::new(), |_, name| format!(", {name} forced"));
        let other = other_address.join(", ");
        format!(
            "| {cni} | {kubernetes} | {containerd} | {proxy_mode} | {kernel} | {auto} by itself{forced} | {other} | {policy} |"
        )
    }
}

impl Kernel {
    fn row(&self) -> String {
        let Self {
            kernel,
            suite,
            passed,
            skipped,
            failed,
        } = self;
        // a test per backend has the same reason
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for why in skipped.values() {
            *reasons.entry(why.clone()).or_default() += 1;
        }
        let (why, failed) = (counted(&reasons), failed.len());
        let all = passed + skipped.len() + failed;
        format!("| {kernel} | {suite} | {all} | {passed} | {why} | {failed} |")
    }
}

impl Conformance {
    fn row(&self) -> String {
        let Self {
            kubernetes,
            passed,
            failed,
            refused,
            skipped,
            mapped,
        } = self;
        let (failed, refused, skipped) = (failed.len(), counted(refused), counted(skipped));
        format!("| {kubernetes} | {passed} | {failed} | {refused} | {skipped} | {mapped} |")
    }
}

/// How many tests each reason has, for a cell of a table.
fn counted(reasons: &BTreeMap<String, usize>) -> String {
    if reasons.is_empty() {
        return "0".to_owned();
    }
    let counted = reasons.iter().map(|(why, count)| format!("{count}: {why}"));
    counted.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_has_a_row_with_the_reasons_of_what_it_left_out() {
        let kernel = Kernel {
            kernel: "5.10.0".to_owned(),
            suite: "netns".to_owned(),
            passed: 3,
            skipped: [("a", "no x"), ("b", "no x")]
                .map(|(test, why)| (test.to_owned(), why.to_owned()))
                .into(),
            failed: Vec::new(),
        };
        let small = Small {
            cni: "flannel".to_owned(),
            kubernetes: "v1.36.3".to_owned(),
            containerd: "1.7.35".to_owned(),
            proxy_mode: "iptables".to_owned(),
            kernel: "6.18".to_owned(),
            auto: "iptables".to_owned(),
            forced: Some("nftables".to_owned()),
            other_address: vec!["the pod itself".to_owned()],
            policy: "not enforced".to_owned(),
        };
        let conformance = Conformance {
            kubernetes: "v1.36.3".to_owned(),
            passed: 7,
            failed: Vec::new(),
            refused: [("takes all annotations".to_owned(), 1)].into(),
            skipped: [("no DNS".to_owned(), 2), ("no image".to_owned(), 4)].into(),
            mapped: 9,
        };
        let runs = [
            Run::Small(small),
            Run::Kernel(Kernel {
                kernel: "6.1.0".to_owned(),
                skipped: BTreeMap::new(),
                ..kernel.clone()
            }),
            Run::Kernel(kernel),
            Run::Conformance(conformance),
        ];
        let text = print(&runs);
        for row in [
            "| v1.36.3 | 7 | 0 | 1: takes all annotations | 2: no DNS; 4: no image | 9 |",
            "| flannel | v1.36.3 | 1.7.35 | iptables | 6.18 | iptables by itself, nftables forced | the pod itself | not enforced |",
            "| 5.10.0 | netns | 5 | 3 | 2: no x | 0 |",
            "| 6.1.0 | netns | 3 | 3 | 0 | 0 |",
        ] {
            assert!(text.contains(row), "no {row} in:\n{text}");
        }
    }
}
