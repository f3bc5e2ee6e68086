use std::time::Duration;

use time::OffsetDateTime;

use super::{Decision, Flaw, decide};
use crate::issue::renew;
use crate::material::{Lifetimes, Material, Names, living_authorities, signing_authority};

const YEAR: Duration = Duration::from_hours(8_760);
const LIFETIMES: Lifetimes = Lifetimes {
    ca: Duration::from_hours(87_600),
    leaf: YEAR,
};

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn names() -> Names {
    Names::of_service("webhook", "portmapping-system")
}

fn good() -> Material {
    let roll = Decision::RollCa(Flaw::Missing);
    renew(&Material::default(), &roll, &names(), LIFETIMES, now())
        .unwrap()
        .unwrap()
}

/// Damage -> verdict, one row each.
#[test]
fn every_kind_of_damage_is_detected() {
    let (mine, other) = (good(), good());
    let after = |damage: &dyn Fn(&mut Material)| {
        let mut held = mine.clone();
        damage(&mut held);
        decide(&held, &names(), now())
    };
    let rubbish = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    let roll = Decision::RollCa;
    assert_eq!(after(&|m| *m = Material::default()), roll(Flaw::Missing));
    assert_eq!(after(&|m| m.ca_bundle.clear()), roll(Flaw::Missing));
    assert_eq!(
        after(&|m| m.ca_bundle = "x".to_owned()),
        roll(Flaw::Missing)
    );
    assert_eq!(
        after(&|m| m.ca_bundle.truncate(200)),
        roll(Flaw::Unreadable)
    );
    assert_eq!(
        after(&|m| m.ca_bundle.push_str(rubbish)),
        roll(Flaw::Unreadable)
    );
    assert_eq!(after(&|m| m.ca_key.clear()), roll(Flaw::Missing));
    assert_eq!(
        after(&|m| m.ca_key = "x".to_owned()),
        roll(Flaw::Unreadable)
    );
    assert_eq!(
        after(&|m| m.ca_key.clone_from(&other.ca_key)),
        roll(Flaw::WrongKey)
    );
    let leaf_as_authority = |m: &mut Material| {
        m.ca_bundle.clone_from(&m.leaf);
        m.ca_key.clone_from(&m.leaf_key);
    };
    assert_eq!(after(&leaf_as_authority), roll(Flaw::NotAnAuthority));

    let leaf = Decision::IssueLeaf;
    assert_eq!(after(&|m| m.leaf.clear()), leaf(Flaw::Missing));
    assert_eq!(after(&|m| m.leaf_key.clear()), leaf(Flaw::Missing));
    assert_eq!(
        after(&|m| m.leaf = "\u{0}\u{1}".to_owned()),
        leaf(Flaw::Unreadable)
    );
    assert_eq!(
        after(&|m| m.leaf_key.clone_from(&other.leaf_key)),
        leaf(Flaw::WrongKey)
    );
    let leaf_of_another = |m: &mut Material| {
        m.leaf.clone_from(&other.leaf);
        m.leaf_key.clone_from(&other.leaf_key);
    };
    assert_eq!(after(&leaf_of_another), leaf(Flaw::WrongSigner));
}

#[test]
fn another_service_name_needs_another_leaf() {
    let renamed = Names::of_service("hook", "elsewhere");
    let expected = Decision::IssueLeaf(Flaw::NameMissing("hook.elsewhere.svc".to_owned()));
    assert_eq!(decide(&good(), &renamed, now()), expected);
}

#[test]
fn leaf_and_ca_are_renewed_after_two_thirds_of_their_validity() {
    let held = good();
    let at = |age: Duration| decide(&held, &names(), now() + age);
    assert!(matches!(at(YEAR * 66 / 100), Decision::Keep { .. }));
    assert_eq!(at(YEAR * 2 / 3), Decision::IssueLeaf(Flaw::Old));
    assert_eq!(at(YEAR * 2), Decision::IssueLeaf(Flaw::Old));
    assert_eq!(at(LIFETIMES.ca * 2 / 3), Decision::RollCa(Flaw::Old));
    assert_eq!(at(LIFETIMES.ca * 2), Decision::RollCa(Flaw::Old));
}

#[test]
fn a_clock_that_was_set_back_before_the_validity_needs_new_certificates() {
    let yesterday = now() - Duration::from_hours(24);
    assert_eq!(
        decide(&good(), &names(), yesterday),
        Decision::RollCa(Flaw::NotYet)
    );
}

#[test]
fn returns_the_unexpired_cas_of_a_bundle() {
    let (one, two) = (good().ca_bundle, good().ca_bundle);
    let bundle = format!("{one}{two}");
    assert_eq!(living_authorities(&bundle, now()), [one.clone(), two]);
    assert_eq!(signing_authority(&bundle), signing_authority(&one));
    assert!(living_authorities(&bundle, now() + LIFETIMES.ca * 2).is_empty());
    assert!(living_authorities("rubbish", now()).is_empty());
    let messy = format!("rubbish{one}-----BEGIN CERTIFICATE-----\nAA{one}{one}rubbish");
    assert_eq!(
        living_authorities(&messy, now()),
        [one],
        "once each, without the rubbish"
    );
}
