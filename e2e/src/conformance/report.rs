//! What ginkgo reports of a run, and the table of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::compatibility::Conformance;

/// The state of a test that ginkgo left out, by its focus.
const LEFT_OUT: &str = "skipped";
const PASSED: &str = "passed";

/// A test that ran.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) name: String,
    passed: bool,
    took: Duration,
    message: String,
}

/// The tests that ran, and the steps of the suite that failed.
#[derive(Debug, Default)]
pub(super) struct Report(Vec<Ran>);

/// A suite in ginkgo's JSON report (`types.Report`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

/// `types.SpecReport`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    /// Nanoseconds.
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

impl Report {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("parse {}", file.display()))
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let suites: Vec<Suite> = serde_json::from_slice(text)?;
        let specs = suites.into_iter().filter_map(|suite| suite.spec_reports);
        let ran = specs.flatten().filter_map(|spec| {
            let is_test = spec.leaf_node_type == "It";
            // of the steps before and after the tests, only failures count
            if spec.state == LEFT_OUT || (!is_test && spec.state == PASSED) {
                return None;
            }
            let mut words = spec.container_hierarchy_texts.unwrap_or_default();
            words.push(if is_test {
                spec.leaf_node_text
            } else {
                spec.leaf_node_type
            });
            Some(Ran {
                name: words.join(" "),
                passed: spec.state == PASSED,
                took: Duration::from_nanos(spec.run_time),
                message: spec.failure.map(|one| one.message).unwrap_or_default(),
            })
        });
        Ok(Self(ran.collect()))
    }

    pub(super) fn passed(&self) -> usize {
        self.0.iter().filter(|one| one.passed).count()
    }

    pub(super) fn failed(&self) -> impl Iterator<Item = &Ran> {
        self.0.iter().filter(|one| !one.passed)
    }

    /// Those of `names` that did not run.
    pub(super) fn missing<'a>(&self, names: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
        let ran: BTreeSet<String> = self.0.iter().map(|one| one.name.clone()).collect();
        names
            .iter()
            .copied()
            .filter(move |name| !ran.contains(*name))
    }

    /// A row per group of tests, then what was refused, skipped and failed, and how many pods were mapped.
    pub(super) fn table(&self, row: &Conformance) -> String {
        let mut groups: BTreeMap<&str, (usize, usize, Duration)> = BTreeMap::new();
        for ran in &self.0 {
            let group = ran.name.split(' ').next().unwrap_or_default();
            let (passed, failed, took) = groups.entry(group).or_default();
            *(if ran.passed { passed } else { failed }) += 1;
            *took += ran.took;
        }
        let mut text = "| tests | passed | failed | s |\n|---|---|---|---|\n".to_owned();
        for (group, (passed, failed, took)) in groups {
            let group = group.trim_matches(['[', ']']);
            let _ = writeln!(
                text,
                "| {group} | {passed} | {failed} | {} |",
                took.as_secs()
            );
        }
        let Conformance {
            refused,
            skipped,
            mapped,
            ..
        } = row;
        for (what, count) in refused {
            let _ = writeln!(text, "{count} refused by portmapping: {what}");
        }
        for (reason, count) in skipped {
            let _ = writeln!(text, "{count} skipped: {reason}");
        }
        let _ = writeln!(text, "{mapped} pods were mapped");
        for ran in self.failed() {
            let _ = writeln!(text, "FAILED {}: {}", ran.name, ran.message);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_ran_and_failed_steps_are_counted() {
        let text = br#"[{"SpecReports": [
            {"ContainerHierarchyTexts": ["[sig-a] x"], "LeafNodeType": "It", "LeafNodeText": "y", "State": "passed", "RunTime": 2000000000},
            {"ContainerHierarchyTexts": ["[sig-a] x"], "LeafNodeType": "It", "LeafNodeText": "z", "State": "failed", "RunTime": 1000000000,
             "Failure": {"Message": "no answer"}},
            {"ContainerHierarchyTexts": ["[sig-b] x"], "LeafNodeType": "It", "LeafNodeText": "w", "State": "skipped"},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "ReportAfterSuite", "State": "failed"}]}]"#;
        let report = Report::parse(text).expect("a report");
        assert_eq!(report.passed(), 1);
        let failed: Vec<_> = report.failed().map(|one| &*one.name).collect();
        assert_eq!(failed, ["[sig-a] x z", "ReportAfterSuite"]);
        let missing: Vec<_> = report.missing(&["[sig-a] x y", "[sig-b] x w"]).collect();
        assert_eq!(missing, ["[sig-b] x w"]);
        let table = report.table(&Conformance::default());
        assert!(table.contains("| sig-a | 1 | 1 | 3 |"), "{table}");
        assert!(table.contains("FAILED [sig-a] x z: no answer"), "{table}");
    }
}
