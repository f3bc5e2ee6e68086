//! Percentiles, and rounds in which each participant has one turn, in random order.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Returns the median (the mean of the two middle values if their number is even); NaN without
/// values.
#[must_use]
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len().is_multiple_of(2)) {
        (Some(upper), true) => f64::midpoint(sorted[middle - 1], *upper),
        (Some(value), false) => *value,
        (None, _) => f64::NAN,
    }
}

/// Returns the smallest value that `percent` of all values do not exceed (nearest rank); NaN
/// without values.
#[must_use]
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let sorted = sorted(values);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted
        .get(rank - 1)
        .or(sorted.last())
        .copied()
        .unwrap_or(f64::NAN)
}

/// Returns the median of ours divided by theirs in each round, because a disturbance affects both.
#[must_use]
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> f64 {
    let ratios: Vec<_> = ours
        .iter()
        .zip(theirs)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    median(&ratios)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The order of turns: different in each round, the same for the same seed.
#[derive(Debug)]
pub(crate) struct Rounds {
    rng: StdRng,
    count: usize,
}

impl Rounds {
    /// Creates `count` rounds, in orders that depend only on `seed`.
    #[must_use]
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, count }
    }

    /// Calls `turn` once per round and participant with both their numbers, in shuffled order;
    /// stops at the first error.
    pub(crate) fn run<E>(
        &mut self,
        participants: usize,
        mut turn: impl FnMut(usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut order: Vec<_> = (0..participants).collect();
        for round in 0..self.count {
            order.shuffle(&mut self.rng);
            for participant in &order {
                turn(round, *participant)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
