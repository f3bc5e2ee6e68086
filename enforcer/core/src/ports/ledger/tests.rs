//! The whole transition table, then random sequences.

use portmapping_shared::{ContainerPort, HostPort, Protocol};
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(100);
const REST: Duration = Duration::from_secs(30);

fn pod() -> PodUid {
    "uid-a".parse().unwrap()
}

fn lease() -> LeasedPort {
    LeasedPort {
        protocol: Protocol::Tcp,
        host_port: HostPort::new(20_000).unwrap(),
        container_port: ContainerPort::new(80).unwrap(),
        host_ip: None,
    }
}

fn held(hold: Hold) -> PortState {
    leased(&pod(), lease(), hold, true)
}

/// Every state, by the name it has in the table.
fn states() -> [(&'static str, PortState); 12] {
    let (rest, until) = (REST, NOW + REST);
    [
        ("Free", PortState::Free),
        ("Missing", held(Hold::Missing)),
        ("Asked", held(Hold::Asked)),
        ("Held", held(Hold::Held)),
        ("Lost", held(Hold::Lost { retry_at: NOW })),
        ("Draining", PortState::Draining { rest, early: false }),
        ("Draining!", PortState::Draining { rest, early: true }),
        (
            "Cooling",
            PortState::Cooling {
                until,
                early: false,
            },
        ),
        ("Cooling!", PortState::Cooling { until, early: true }),
        ("Releasing", PortState::Releasing { early: false }),
        ("Releasing!", PortState::Releasing { early: true }),
        ("Quarantined", PortState::Quarantined { until }),
    ]
}

fn name(state: &PortState) -> &'static str {
    match state {
        PortState::Free => "Free",
        PortState::Leased { hold, .. } => match hold {
            Hold::Missing => "Missing",
            Hold::Asked => "Asked",
            Hold::Held => "Held",
            Hold::Lost { .. } => "Lost",
        },
        PortState::Draining { early: false, .. } => "Draining",
        PortState::Draining { early: true, .. } => "Draining!",
        PortState::Cooling { early: false, .. } => "Cooling",
        PortState::Cooling { early: true, .. } => "Cooling!",
        PortState::Releasing { early: false } => "Releasing",
        PortState::Releasing { early: true } => "Releasing!",
        PortState::Quarantined { .. } => "Quarantined",
    }
}

/// Every event, with the states that follow. An event is refused in all states that it does not
/// list. `!` is an early rest.
const TABLE: [(&str, &[(&str, &str)]); 23] = [
    ("allocate", &[("Free", "Missing")]),
    (
        "reclaim",
        &[("Draining", "Missing"), ("Cooling", "Missing")],
    ),
    ("recover a lease, held", &[("Free", "Held")]),
    ("recover a lease, not held", &[("Free", "Missing")]),
    ("recover a hold", &[("Free", "Cooling")]),
    ("recover a hold, ruled", &[("Free", "Draining")]),
    (
        "a rule is asked for",
        &[
            ("Missing", "Missing"),
            ("Asked", "Asked"),
            ("Held", "Held"),
            ("Lost", "Lost"),
        ],
    ),
    (
        "end a lease",
        &[
            ("Missing", "Cooling"),
            ("Asked", "Cooling"),
            ("Held", "Cooling"),
            ("Lost", "Cooling"),
        ],
    ),
    (
        "end a lease, ruled",
        &[
            ("Missing", "Draining"),
            ("Asked", "Draining"),
            ("Held", "Draining"),
            ("Lost", "Draining"),
        ],
    ),
    (
        "end a lease early",
        &[
            ("Missing", "Cooling!"),
            ("Asked", "Cooling!"),
            ("Held", "Cooling!"),
            ("Lost", "Cooling!"),
        ],
    ),
    (
        "end a lease early, ruled",
        &[
            ("Missing", "Draining!"),
            ("Asked", "Draining!"),
            ("Held", "Draining!"),
            ("Lost", "Draining!"),
        ],
    ),
    (
        "rules removed",
        &[("Draining", "Cooling"), ("Draining!", "Cooling!")],
    ),
    (
        "claim",
        &[
            ("Draining", "Draining!"),
            ("Draining!", "Draining!"),
            ("Cooling", "Cooling!"),
            ("Cooling!", "Cooling!"),
        ],
    ),
    (
        "rest over",
        &[
            ("Cooling", "Releasing"),
            ("Cooling!", "Releasing!"),
            ("Quarantined", "Free"),
        ],
    ),
    ("asked", &[("Missing", "Asked"), ("Lost", "Asked")]),
    (
        "bound",
        &[
            ("Asked", "Held"),
            ("Free", "Cooling!"),
            ("Quarantined", "Cooling!"),
        ],
    ),
    (
        "bind refused",
        &[
            ("Missing", "Quarantined"),
            ("Asked", "Quarantined"),
            ("Held", "Quarantined"),
            ("Lost", "Quarantined"),
        ],
    ),
    (
        "bind refused, ruled",
        &[("Asked", "Lost"), ("Held", "Lost")],
    ),
    ("bind failed", &[("Asked", "Lost")]),
    (
        "keeper failed",
        &[
            ("Asked", "Missing"),
            ("Releasing", "Cooling"),
            ("Releasing!", "Cooling!"),
        ],
    ),
    (
        "listed",
        &[
            ("Missing", "Held"),
            ("Asked", "Held"),
            ("Held", "Held"),
            ("Lost", "Held"),
            ("Releasing", "Cooling"),
            ("Releasing!", "Cooling!"),
            ("Free", "Cooling!"),
            ("Quarantined", "Cooling!"),
        ],
    ),
    (
        "not listed",
        &[
            ("Missing", "Missing"),
            ("Asked", "Missing"),
            ("Held", "Missing"),
            ("Lost", "Missing"),
            ("Releasing", "Cooling"),
            ("Releasing!", "Cooling!"),
        ],
    ),
    (
        "closed",
        &[("Releasing", "Free"), ("Releasing!", "Quarantined")],
    ),
];

fn happen(event: &str, state: PortState) -> Transition {
    match event {
        "allocate" => state.allocate(&pod(), lease()),
        "reclaim" => state.reclaim(&pod(), lease()),
        "recover a lease, held" => state.recover_lease(&pod(), lease(), true),
        "recover a lease, not held" => state.recover_lease(&pod(), lease(), false),
        "recover a hold" => state.recover_hold(NOW, REST, false),
        "recover a hold, ruled" => state.recover_hold(NOW, REST, true),
        "a rule is asked for" => state.ruled(),
        "end a lease" => state.end_lease(NOW, REST, false, false),
        "end a lease, ruled" => state.end_lease(NOW, REST, true, false),
        "end a lease early" => state.end_lease(NOW, Duration::ZERO, false, true),
        "end a lease early, ruled" => state.end_lease(NOW, Duration::ZERO, true, true),
        "rules removed" => state.rules_removed(NOW),
        "claim" => state.claim(NOW),
        "rest over" => state.rest_over(),
        "asked" => state.asked(),
        "bound" => state.bound(NOW),
        "bind refused" => state.bind_refused(NOW, false, REST),
        "bind refused, ruled" => state.bind_refused(NOW, true, REST),
        "bind failed" => state.bind_failed(NOW),
        "keeper failed" => state.keeper_failed(NOW),
        "listed" => state.listed(NOW, true),
        "not listed" => state.listed(NOW, false),
        "closed" => state.closed(NOW, REST),
        other => panic!("{other}"),
    }
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    for (event, rows) in TABLE {
        for (from, state) in states() {
            let expected = rows.iter().find(|row| row.0 == from).map(|row| row.1);
            match happen(event, state.clone()) {
                Ok(next) => assert_eq!(Some(name(&next)), expected, "{event} in {from}"),
                Err(same) => assert_eq!((same, None), (state, expected), "{event} in {from}"),
            }
        }
    }
}

#[test]
fn a_rest_begins_when_the_last_rule_is_removed() {
    let draining = held(Hold::Held).end_lease(NOW, REST, true, false).unwrap();
    let later = NOW + Duration::from_secs(5);
    let until = later + REST;
    let cooling = PortState::Cooling {
        until,
        early: false,
    };
    assert_eq!(draining.rules_removed(later), Ok(cooling));
}

#[test]
fn a_port_that_never_had_a_rule_rests_for_no_time() {
    let unused = PortState::Free.allocate(&pod(), lease()).unwrap();
    let ended = unused.clone().end_lease(NOW, REST, false, false).unwrap();
    assert_eq!(ended.rest_left(NOW), Duration::ZERO);
    // one whose rule was removed before, or is under way, rests
    let used = unused.clone().ruled().unwrap().asked().unwrap();
    let ended = used.end_lease(NOW, REST, false, false).unwrap();
    assert_eq!(ended.rest_left(NOW), REST);
    let ended = unused.end_lease(NOW, REST, true, false).unwrap();
    assert_eq!(ended.rest_left(NOW), REST);
}

#[test]
fn a_static_claim_ends_a_rest_at_once() {
    for (state, ruled) in [("Draining", true), ("Cooling", false)] {
        let (_, resting_state) = states()
            .into_iter()
            .find(|(name, _)| *name == state)
            .unwrap();
        let claimed = resting_state.claim(NOW).unwrap();
        assert_eq!(claimed, resting(NOW, Duration::ZERO, ruled, true));
    }
}

/// What must hold of every transition, whatever the table says.
fn is_sound(before: &PortState, after: &PortState) -> bool {
    let owner = |state: &PortState| state.lease().map(|(pod, _)| pod.clone());
    match (owner(before), owner(after)) {
        // a lease begins at a free port, or where the pod had it before
        (None, Some(_)) => *before == PortState::Free || before.is_reclaimable(),
        (Some(before), Some(after)) => before == after,
        // a port that a pod had is not free before the keeper closed it
        (Some(_), None) => *after != PortState::Free,
        // a rest that was ended early ends in quarantine
        (None, None) => {
            *after != PortState::Free
                || matches!(
                    before,
                    PortState::Free
                        | PortState::Releasing { early: false }
                        | PortState::Quarantined { .. }
                )
        }
    }
}

proptest! {
    #[test]
    fn no_sequence_of_events_takes_a_port_from_its_pod_or_skips_a_rest(
        events in prop::collection::vec(0..TABLE.len(), 0..60),
    ) {
        let mut state = PortState::Free;
        for event in events {
            let before = state.clone();
            state = happen(TABLE[event].0, state).unwrap_or_else(|same| same);
            prop_assert!(is_sound(&before, &state), "{}: {before:?} to {state:?}", TABLE[event].0);
        }
        // and from wherever that led, the usual end of a lease leads back to Free
        for event in ["end a lease", "rules removed", "rest over", "closed", "rest over"] {
            state = happen(event, state).unwrap_or_else(|same| same);
        }
        prop_assert_eq!(state, PortState::Free);
    }
}
