use nix::sys::signal::{Signal, raise};

use super::*;

#[test]
fn a_signal_that_comes_while_the_enforcer_starts_over_ends_it() {
    let earlier = runtime().unwrap();
    let mut signals = earlier.block_on(async { EndSignals::install() }).unwrap();
    earlier.shutdown_timeout(EXIT_LIMIT);
    let next = runtime().unwrap().block_on(next_step(&mut signals));
    assert!(!matches!(next, Next::End), "no signal came");
    // no runtime listens at this moment
    raise(Signal::SIGTERM).unwrap();
    let next = runtime().unwrap().block_on(next_step(&mut signals));
    assert!(matches!(next, Next::End));
}
