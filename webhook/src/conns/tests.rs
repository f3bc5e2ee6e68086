use std::time::{Duration, Instant};

use super::{Connections, Place, Silence};

const SILENCE: Silence = Silence {
    first: Duration::from_secs(1),
    idle: Duration::from_secs(100),
    busy: Duration::from_secs(10),
};

fn enter(connections: &Connections) -> Place {
    connections.enter().unwrap().0
}

fn gone(place: &Place) -> bool {
    place.evict.is_cancelled()
}

#[test]
fn places_are_given_back() {
    let connections = Connections::new(2);
    let one = enter(&connections);
    let two = enter(&connections);
    assert_eq!(connections.count(), 2);
    drop(one);
    assert_eq!(connections.count(), 1);
    let (_three, evicted) = connections.enter().unwrap();
    assert!(!evicted && !gone(&two));
}

#[test]
fn who_never_asked_goes_first_then_who_was_idle_longest() {
    let connections = Connections::new(3);
    let old = enter(&connections);
    drop(old.busy());
    let newer = enter(&connections);
    drop(newer.busy());
    let silent = enter(&connections);

    let (fourth, evicted) = connections.enter().unwrap();
    assert!(evicted && gone(&silent) && !gone(&old));
    drop(fourth.busy());
    let fifth = enter(&connections);
    assert!(gone(&old) && !gone(&newer), "the one idle longest");
    assert_eq!(connections.count(), 3);
    drop((silent, old));
    assert_eq!(connections.count(), 3, "leaving twice counts once");
    drop((newer, fourth, fifth));
    assert_eq!(connections.count(), 0);
}

#[test]
fn nobody_is_thrown_out_in_the_middle_of_a_request() {
    let connections = Connections::new(1);
    let place = enter(&connections);
    let (first, second) = (place.busy(), place.busy());
    assert!(connections.enter().is_none());
    drop(first);
    assert!(connections.enter().is_none());
    drop(second);
    assert!(connections.enter().is_some());
    assert!(gone(&place));
}

#[test]
fn the_limit_of_silence_depends_on_what_is_waited_for() {
    let connections = Connections::new(1);
    let place = enter(&connections);
    let start = Instant::now();
    let limit = || {
        place
            .silent_at(SILENCE)
            .duration_since(start)
            .as_secs_f64()
            .round()
    };
    assert!((limit() - 1.0).abs() < 0.5);
    let busy = place.busy();
    assert!((limit() - 10.0).abs() < 0.5);
    drop(busy);
    assert!((limit() - 100.0).abs() < 0.5);
    enter(&connections);
    assert!(
        place.silent_at(SILENCE) <= Instant::now(),
        "no place, no time"
    );
}
