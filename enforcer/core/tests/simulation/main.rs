//! Random sequences of events for the state machine, with a model of kernel, keeper, container
//! runtime and API server that may fail, delay, lose, reorder and restart. A failure prints the seed
//! that repeats it: `SIMULATION_SEED=n cargo test -p portmapping-enforcer-core --test simulation`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on ends"
)]

mod answers;
mod checks;
mod cluster;
mod faults;
mod history;
mod reference;
mod requests;
mod runtime;
mod seen;
mod starts;
mod upgrades;
mod world;

use seen::Seen;
use world::World;

/// Steps of one walk, and walks of one run: a million steps unless `SIMULATION_WALKS` says more.
const STEPS: u32 = 1000;
const WALKS: u64 = 1000;

#[test]
fn no_schedule_breaks_an_invariant() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIMULATION_WALKS").unwrap_or(WALKS),
    };
    let mut seen = Seen::default();
    for seed in seeds.clone() {
        let mut world = World::new(seed);
        for step in 0..STEPS {
            world.step();
            if let Err(violation) = world.check() {
                panic!("seed {seed}, step {step}: {violation}\n{}", world.log());
            }
        }
        if let Err(violation) = world.settle() {
            panic!("seed {seed}, settling: {violation}\n{}", world.log());
        }
        seen += world.seen;
    }
    let steps = (seeds.end - seeds.start) * u64::from(STEPS);
    println!("{steps} steps, {seen:?}");
    assert!(
        seeds.end - seeds.start < WALKS || seen.everything(),
        "something never happened, so nothing is proved about it: {seen:?}"
    );
}
