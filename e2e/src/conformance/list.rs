//! The list of Kubernetes' own tests that run, and of those that do not, with the reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use regex::Regex;

/// The name that Kubernetes' suite puts before the name of each test.
const SUITE: &str = "Kubernetes e2e suite";

/// Names of tests.
#[derive(Debug, Default)]
pub(super) struct List {
    run: Vec<String>,
    /// What the product refuses -> how many.
    refused: BTreeMap<String, usize>,
    /// Reason -> how many.
    skipped: BTreeMap<String, usize>,
}

impl List {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        Ok(Self::parse(&text))
    }

    /// Parses a file with a name per line. `[skipped: REASON]` begins the names that do not run.
    /// `[refused: WHAT]` begins those that would fail, because they do what the product refuses.
    fn parse(text: &str) -> Self {
        let mut list = Self::default();
        let mut left_out = None;
        for line in text.lines() {
            if let Some(what) = heading(line, "refused") {
                left_out = Some((what, true));
            } else if let Some(why) = heading(line, "skipped") {
                left_out = Some((why, false));
            } else if line.starts_with('[') {
                let (why, tests) = match left_out {
                    None => {
                        list.run.push(line.to_owned());
                        continue;
                    }
                    Some((what, true)) => (what, &mut list.refused),
                    Some((why, false)) => (why, &mut list.skipped),
                };
                *tests.entry(why.to_owned()).or_default() += 1;
            }
        }
        list
    }

    /// The tests that run and whose name matches one of these expressions; all of them without one.
    pub(super) fn chosen(&self, focus: &[Regex]) -> impl Iterator<Item = &str> {
        let names = self.run.iter().map(String::as_str);
        names.filter(move |name| focus.is_empty() || focus.iter().any(|one| one.is_match(name)))
    }

    /// What the product refuses -> how many tests do that.
    pub(super) fn refused(&self) -> BTreeMap<String, usize> {
        self.refused.clone()
    }

    /// Reason -> how many tests are skipped for it.
    pub(super) fn skipped(&self) -> BTreeMap<String, usize> {
        self.skipped.clone()
    }
}

/// What stands in `[KIND: ...]`.
fn heading<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    let text = line.strip_prefix('[')?.strip_suffix(']')?;
    text.strip_prefix(kind)?.strip_prefix(": ")
}

/// A regular expression of Go (RE2) that matches exactly these tests.
pub(super) fn pattern(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| quote(name)).collect();
    format!("^{SUITE} (?:{})$", quoted.join("|"))
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::conformance::sources;

    #[test]
    fn names_after_a_reason_do_not_run() {
        let list = List::parse(
            "# why\n\n[sig-a] one\n[sig-b] two\n\n[skipped: no x]\n[sig-a] c\n\n[refused: y: z]\n[sig-a] d: e [F]\n",
        );
        let all: Vec<_> = list.chosen(&[]).collect();
        assert_eq!(all, ["[sig-a] one", "[sig-b] two"]);
        let chosen = |focus: &[&str]| -> Vec<&str> {
            let focus = focus.iter().map(|one| Regex::new(one).expect("a focus"));
            list.chosen(&focus.collect::<Vec<_>>()).collect()
        };
        assert_eq!(chosen(&["two"]), ["[sig-b] two"]);
        assert_eq!(chosen(&[r"\[sig-(b|c)\].*o$"]), ["[sig-b] two"]);
        assert_eq!(chosen(&["(?i)ONE", "^none"]), ["[sig-a] one"]);
        assert_eq!(list.skipped(), BTreeMap::from([("no x".to_owned(), 1)]));
        assert_eq!(list.refused(), BTreeMap::from([("y: z".to_owned(), 1)]));
    }

    #[test]
    fn each_listed_test_is_one_of_the_four_groups_and_listed_once() {
        let text = fs::read_to_string(sources().join("tests.txt")).expect("the list");
        let mut names: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("[sig-"))
            .collect();
        for name in &names {
            let groups = ["[sig-apps] ", "[sig-cli] ", "[sig-network] ", "[sig-node] "];
            assert!(groups.iter().any(|one| name.starts_with(one)), "{name}");
            assert!(name.ends_with(" [Conformance]"), "{name}");
        }
        let listed = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), listed);
    }

    #[test]
    fn a_pattern_has_no_operators_of_a_name() {
        let pattern = pattern(&["[a] b *not* (c)", "d"]);
        assert_eq!(
            pattern,
            "^Kubernetes e2e suite (?:\\[a\\] b \\*not\\* \\(c\\)|d)$"
        );
    }
}
