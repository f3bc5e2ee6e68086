//! What a suite printed, as rows of a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::compatibility::{Kernel, Run};

/// A test prints this, and why, when the kernel lacks what it needs.
const SKIPPED: &str = "skipped: ";

/// The result of one suite.
#[derive(Debug, Default)]
pub(super) struct SuiteOutcome {
    pub(super) passed: usize,
    /// Test -> why.
    pub(super) skipped: BTreeMap<String, String>,
    pub(super) failed: Vec<String>,
    /// Whether the suite ended by itself.
    pub(super) complete: bool,
}

impl SuiteOutcome {
    /// Reads the output of a test program that ran with `--show-output`.
    pub(super) fn parse(log: &str) -> Self {
        let mut outcome = Self::default();
        let mut output_of = None;
        for line in log.lines() {
            if let Some(name) = line
                .strip_prefix("---- ")
                .and_then(|rest| rest.split(' ').next())
            {
                output_of = Some(name.to_owned());
            }
            if let Some(why) = line.strip_prefix(SKIPPED) {
                let name = output_of.clone().unwrap_or_default();
                outcome.skipped.insert(name, why.to_owned());
            }
            outcome.complete |= line.starts_with("test result: ");
            let Some((name, how)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.split_once(" ... "))
            else {
                continue;
            };
            match how.split_whitespace().next() {
                Some("ok") => outcome.passed += 1,
                Some("FAILED") => outcome.failed.push(name.to_owned()),
                _ => {}
            }
        }
        outcome.passed -= outcome.skipped.len().min(outcome.passed);
        outcome
    }

    /// The row of a whole suite.
    pub(super) fn row(&self, kernel: &str, suite: &str) -> Run {
        let Self {
            passed,
            skipped,
            failed,
            complete: _,
        } = self;
        Run::Kernel(Kernel {
            kernel: kernel.to_owned(),
            suite: suite.to_owned(),
            passed: *passed,
            skipped: skipped.clone(),
            failed: failed.clone(),
        })
    }
}

/// The table of all kernels and suites, then what was skipped and failed.
pub(super) fn table(rows: &[(String, &str, SuiteOutcome)]) -> String {
    let mut text =
        "| kernel | suite | run | passed | skipped | failed |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (kernel, suite, outcome) in rows {
        let (passed, failed) = (outcome.passed, outcome.failed.len());
        let skipped = outcome.skipped.len();
        let run = passed + failed + skipped;
        let end = if outcome.complete {
            ""
        } else {
            ", did not end"
        };
        let _ = writeln!(
            text,
            "| {kernel} | {suite} | {run}{end} | {passed} | {skipped} | {failed} |"
        );
    }
    for (kernel, suite, outcome) in rows {
        for (test, why) in &outcome.skipped {
            let _ = writeln!(text, "{kernel}: {suite}: {test} skipped: {why}");
        }
        for test in &outcome.failed {
            let _ = writeln!(text, "{kernel}: {suite}: {test} FAILED");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_neither_passed_nor_failed() {
        let outcome = SuiteOutcome::parse(
            "test a::nft::b ... ok\ntest a::c ... ok\ntest a::d ... FAILED\ntest e ... ignored, slow\n\
             successes:\n---- a::c stdout ----\nskipped: no SCTP\n\
             test result: FAILED. 2 passed\n",
        );
        assert_eq!((outcome.passed, outcome.complete), (1, true));
        assert_eq!(outcome.skipped["a::c"], "no SCTP");
        assert_eq!(outcome.failed, ["a::d"]);
    }

    #[test]
    fn a_suite_that_was_killed_is_not_complete() {
        assert!(!SuiteOutcome::parse("test a ... ok\n").complete);
    }
}
