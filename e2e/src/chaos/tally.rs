//! Which fault comes next, and how often each kind has happened.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use anyhow::{Result, ensure};

use super::Fault;
use super::dice::Dice;

/// A run with so many rounds per kind has made each kind happen.
const ROUNDS_PER_KIND: usize = 2;

/// The kinds of a run.
#[derive(Debug)]
pub(super) struct Tally(BTreeMap<Fault, (usize, u32)>);

impl Tally {
    /// These kinds only; all if there are none.
    pub(super) fn new(only: &[Fault]) -> Self {
        let allowed = Fault::WEIGHTS.into_iter();
        let allowed = allowed.filter(|(fault, _)| only.is_empty() || only.contains(fault));
        Self(
            allowed
                .map(|(fault, weight)| (fault, (weight, 0)))
                .collect(),
        )
    }

    /// One that has not happened yet, or else one by its weight.
    pub(super) fn next(&self, dice: &mut Dice) -> Fault {
        let missing = self.missing();
        let from = if missing.is_empty() {
            let all = self.0.iter();
            all.flat_map(|(fault, (weight, _))| std::iter::repeat_n(*fault, *weight))
                .collect()
        } else {
            missing
        };
        from[dice.below(from.len())]
    }

    /// Counts one that has happened. A fault that had nothing to hit is none, or another one.
    pub(super) fn count(&mut self, kind: Option<Fault>) {
        if let Some((_, times)) = kind.and_then(|kind| self.0.get_mut(&kind)) {
            *times += 1;
        }
    }

    pub(super) fn has(&self, kind: Fault) -> bool {
        self.0.contains_key(&kind)
    }

    fn missing(&self) -> Vec<Fault> {
        let never = self.0.iter().filter(|(_, (_, times))| *times == 0);
        never.map(|(fault, _)| *fault).collect()
    }

    /// Fails after a long run in which a kind has not happened.
    pub(super) fn suffices(&self, rounds: u32) -> Result<()> {
        let missing: Vec<_> = self.missing().iter().map(Fault::to_string).collect();
        let long = usize::try_from(rounds).unwrap_or(usize::MAX) >= self.0.len() * ROUNDS_PER_KIND;
        ensure!(
            !long || missing.is_empty(),
            "in {rounds} rounds these faults never happened: {}",
            missing.join(", ")
        );
        Ok(())
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:18}times", "fault")?;
        for (fault, (_, times)) in &self.0 {
            writeln!(f, "{fault:18}{times:5}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_comes_before_one_comes_twice() {
        let (mut tally, mut dice) = (Tally::new(&[]), Dice::new(1));
        for _ in Fault::WEIGHTS {
            let next = tally.next(&mut dice);
            tally.count(Some(next));
        }
        assert_eq!(tally.missing(), []);
        tally.suffices(1000).unwrap();
    }

    #[test]
    fn a_long_run_without_one_kind_fails() {
        let (mut tally, mut dice) = (Tally::new(&[Fault::Thief, Fault::Create]), Dice::new(1));
        tally.count(Some(Fault::Create));
        tally.count(None);
        tally.suffices(3).unwrap();
        tally.suffices(4).unwrap_err();
        assert_eq!(tally.next(&mut dice), Fault::Thief);
    }
}
