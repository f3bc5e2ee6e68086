use std::time::Duration;

use time::OffsetDateTime;

use super::{IssueError, renew};
use crate::material::{Lifetimes, Material, Names, living_authorities};
use crate::rotation::{Decision, Flaw, decide};

const LIFETIMES: Lifetimes = Lifetimes {
    ca: Duration::from_hours(87_600),
    leaf: Duration::from_hours(8_760),
};

fn names() -> Names {
    Names::of_service("webhook", "portmapping-system")
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn issue(lifetimes: Lifetimes, now: OffsetDateTime) -> Material {
    let decision = decide(&Material::default(), &names(), now);
    renew(&Material::default(), &decision, &names(), lifetimes, now)
        .unwrap()
        .unwrap()
}

#[test]
fn the_first_certificates_are_good() {
    let Decision::Keep { leaf_ends, ca_ends } = decide(&issue(LIFETIMES, now()), &names(), now())
    else {
        panic!("not good");
    };
    assert_eq!(leaf_ends, now() + LIFETIMES.leaf);
    assert_eq!(ca_ends, now() + LIFETIMES.ca);
}

#[test]
fn certificates_are_valid_from_a_little_earlier() {
    let behind = now() - Duration::from_mins(4);
    assert!(matches!(
        decide(&issue(LIFETIMES, now()), &names(), behind),
        Decision::Keep { .. }
    ));
}

#[test]
fn a_new_leaf_keeps_the_ca() {
    let old = issue(LIFETIMES, now());
    let decision = Decision::IssueLeaf(Flaw::Old);
    let new = renew(&old, &decision, &names(), LIFETIMES, now())
        .unwrap()
        .unwrap();
    assert_eq!((&new.ca_bundle, &new.ca_key), (&old.ca_bundle, &old.ca_key));
    assert_ne!(new.leaf, old.leaf);
    assert!(matches!(
        decide(&new, &names(), now()),
        Decision::Keep { .. }
    ));
}

#[test]
fn a_new_ca_keeps_the_unexpired_old_ones_in_the_bundle() {
    let mut held = issue(LIFETIMES, now());
    for round in 1..6 {
        let later = now() + Duration::from_mins(round);
        let decision = Decision::RollCa(Flaw::Old);
        let new = renew(&held, &decision, &names(), LIFETIMES, later)
            .unwrap()
            .unwrap();
        assert!(matches!(
            decide(&new, &names(), later),
            Decision::Keep { .. }
        ));
        let (before, after) = (
            living_authorities(&held.ca_bundle, later),
            living_authorities(&new.ca_bundle, later),
        );
        assert_eq!(
            after[1], before[0],
            "the one that signed what is being served"
        );
        assert!(after.len() <= 3, "the bundle does not grow for ever");
        held = new;
    }
    let end = now() + LIFETIMES.ca + Duration::from_hours(1);
    let decision = Decision::RollCa(Flaw::Old);
    let new = renew(&held, &decision, &names(), LIFETIMES, end)
        .unwrap()
        .unwrap();
    assert_eq!(
        living_authorities(&new.ca_bundle, now()).len(),
        1,
        "ended ones are dropped"
    );
}

#[test]
fn a_leaf_expires_no_later_than_its_ca() {
    let short = Lifetimes {
        ca: Duration::from_hours(1),
        leaf: Duration::from_hours(9),
    };
    let Decision::Keep { leaf_ends, ca_ends } = decide(&issue(short, now()), &names(), now())
    else {
        panic!("not good");
    };
    assert_eq!(leaf_ends, ca_ends);
}

#[test]
fn an_absurd_lifetime_is_an_error() {
    let absurd = Lifetimes {
        ca: Duration::MAX,
        leaf: Duration::MAX,
    };
    let decision = Decision::RollCa(Flaw::Missing);
    let issued = renew(&Material::default(), &decision, &names(), absurd, now());
    assert!(matches!(issued, Err(IssueError::Lifetime(_))));
}

#[test]
fn no_key_is_ever_printed() {
    let text = format!("{:?}", issue(LIFETIMES, now()));
    assert!(
        text.contains("BEGIN CERTIFICATE") && !text.contains("PRIVATE KEY"),
        "{text}"
    );
}
