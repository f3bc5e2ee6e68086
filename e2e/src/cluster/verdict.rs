//! Tests of one process that share a cluster. It ends with the process, when no test can remove its
//! folder any more; so the owner learns before that whether the folder stays.

use std::io::Write;
use std::process::Child;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::{Cluster, Home, owner};
use crate::progress::say;

/// The tests of a cluster so far.
#[derive(Debug, Default)]
pub(super) struct Tests {
    running: usize,
    failed: bool,
}

impl Cluster {
    /// Runs a test. Should this process end while a test runs, or after one has failed, the folder of
    /// the cluster stays with its logs; otherwise the owner removes it.
    pub fn judged<T>(&self, test: impl FnOnce() -> Result<T>) -> Result<T> {
        let Home::Owned { owner, tests, .. } = &self.home else {
            return test();
        };
        let mut judge = Judge::new(owner, tests);
        let outcome = test();
        judge.passed = outcome.is_ok();
        if let Err(error) = &outcome {
            // once more after all that the test printed about the cluster
            say(format_args!("error: {error:#}"));
        }
        outcome
    }
}

/// A running test, which has failed when this is dropped early, as by a panic.
struct Judge<'a> {
    owner: &'a Child,
    tests: &'a Mutex<Tests>,
    passed: bool,
}

impl<'a> Judge<'a> {
    fn new(owner: &'a Child, tests: &'a Mutex<Tests>) -> Self {
        let judge = Self {
            owner,
            tests,
            passed: false,
        };
        judge.update(|tests| tests.running += 1);
        judge
    }

    fn update(&self, change: impl FnOnce(&mut Tests)) {
        let mut tests = self.tests.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut tests);
        let word = if tests.failed || tests.running > 0 {
            owner::KEEP
        } else {
            owner::REMOVE
        };
        // an owner that has ended keeps the folder
        let _ = self
            .owner
            .stdin
            .as_ref()
            .map(|mut stdin| stdin.write_all(&[word]));
    }
}

impl Drop for Judge<'_> {
    fn drop(&mut self) {
        let passed = self.passed;
        self.update(|tests| {
            tests.running -= 1;
            tests.failed |= !passed;
        });
    }
}
