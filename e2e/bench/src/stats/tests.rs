use std::convert::Infallible;

use super::*;

#[test]
fn medians_of_odd_even_and_no_values() {
    let near = |value: f64, wanted: f64| (value - wanted).abs() < 1e-9;
    assert!(near(median(&[3.0, 1.0, 2.0]), 2.0));
    assert!(near(median(&[4.0, 1.0, 3.0, 2.0]), 2.5));
    assert!(median(&[]).is_nan());
}

#[test]
fn percentiles_are_values_that_were_measured() {
    let values: Vec<_> = (1..=200).rev().map(f64::from).collect();
    let at = |percent| percentile(&values, percent);
    for (percent, wanted) in [(0, 1.0), (50, 100.0), (99, 198.0), (100, 200.0)] {
        let found = at(percent);
        assert!((found - wanted).abs() < 1e-9, "{percent} %: {found}");
    }
    assert!((percentile(&[7.0], 99) - 7.0).abs() < 1e-9);
    assert!(percentile(&[], 50).is_nan());
}

#[test]
fn a_slow_round_does_not_change_the_ratio() {
    let (ours, theirs) = ([11.0, 110.0, 11.0], [10.0, 100.0, 10.0]);
    assert!((ratio(&ours, &theirs) - 1.1).abs() < 1e-9);
    assert!(ratio(&[], &[]).is_nan());
}

fn turns(seed: u64) -> Vec<(usize, usize)> {
    let mut turns = Vec::new();
    let done: Result<(), Infallible> = Rounds::new(4, seed).run(5, |round, who| {
        turns.push((round, who));
        Ok(())
    });
    done.expect("no turn fails");
    turns
}

#[test]
fn every_participant_has_one_turn_per_round_in_a_changing_order() {
    let turns = turns(1);
    let orders: Vec<Vec<usize>> = (0..4)
        .map(|round| {
            turns
                .iter()
                .filter(|turn| turn.0 == round)
                .map(|turn| turn.1)
                .collect()
        })
        .collect();
    for order in &orders {
        let mut order = order.clone();
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3, 4]);
    }
    assert!(
        orders.windows(2).any(|pair| pair[0] != pair[1]),
        "{orders:?}"
    );
}

#[test]
fn the_seed_alone_decides_the_order() {
    assert_eq!(turns(7), turns(7));
    assert_ne!(turns(7), turns(8));
}

#[test]
fn a_failed_turn_ends_the_rounds() {
    let mut count = 0;
    let done = Rounds::new(9, 1).run(2, |_, _| {
        count += 1;
        if count == 3 { Err("broken") } else { Ok(()) }
    });
    assert_eq!((done, count), (Err("broken"), 3));
}
