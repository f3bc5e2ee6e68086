use proptest::prelude::*;

use super::super::family::Family;
use super::super::testing::{any_mapping, hostile_text, map};
use super::*;
use portmapping_shared::Protocol;

const CHAIN: &str = "PORTMAPPING-UID-TCP-20000";

fn read(rules: &[&str]) -> (Notes, Owners, bool) {
    let mut notes = Notes::default();
    let (owners, whole) = notes.read(CHAIN, rules);
    (notes, owners, whole)
}

fn tcp(port: u16) -> Mapping {
    map(Protocol::Tcp, port, "10.244.1.7", 80)
}

fn note(entries: &str) -> String {
    format!("-m comment --comment \"portmapping:{entries}\"")
}

#[test]
fn names_fit_and_differ() {
    for (leaf, notes) in [
        ("PORTMAPPING-TCP", "PORTMAPPING-UID-TCP"),
        ("PORTMAPPING-UDP-OTHER", "PORTMAPPING-UID-UDP-OTHER"),
        ("PORTMAPPING-SCTP-10000-10027", "PORTMAPPING-UID-SCTP-10000"),
    ] {
        assert_eq!(chain_of(leaf), notes);
        assert!(is_notes(notes) && notes.len() <= 28 && !is_notes(leaf));
    }
}

#[test]
fn five_uids_fit_into_a_rule() {
    let uid = "5f6c0a4e-9d1c-4f6b-8a57-0c3f6f1f2a11";
    let mappings: Vec<Mapping> = (20000..20007)
        .map(|port| Mapping {
            owner: uid.parse().unwrap(),
            ..tcp(port)
        })
        .collect();
    let entries = |ports: std::ops::Range<u16>| {
        let entries: Vec<String> = ports.map(|port| format!("{port}={uid}")).collect();
        note(&entries.join(" "))
    };
    assert_eq!(
        rules(&mappings),
        [entries(20000..20005), entries(20005..20007)]
    );
}

#[test]
fn doubt_is_nobody() {
    let key = Key::of(&tcp(20000));
    let owner = |rules: &[&str]| {
        let (_, owners, whole) = read(rules);
        (owners.of(&key).map(|uid| uid.as_str().to_owned()), whole)
    };
    let some = |uid: &str| Some(uid.to_owned());
    let (a, b) = (note("20000=a"), note("20000=b"));
    assert_eq!(owner(&[]), (None, true));
    assert_eq!(owner(&[&a]), (some("a"), true));
    assert_eq!(owner(&[&a, &a]), (some("a"), false));
    assert_eq!(owner(&[&a, &b]), (None, false));
    assert_eq!(owner(&[&a, &b, &a]), (None, false));
    assert_eq!(owner(&[&note("20000=a 20000=b")]), (None, false));
    assert_eq!(owner(&[&note("20000@192.0.2.1=b"), &a]), (some("a"), true));
    for stranger in [
        "-j ACCEPT".to_owned(),
        format!("{a} -j ACCEPT"),
        note(""),
        note("20000"),
        note("0=a"),
        note("20000=a b"),
        note("20000@=a"),
        note("20000=a,20001=b"),
        "-m comment --comment \"20000=b\"".to_owned(),
    ] {
        assert_eq!(owner(&[&stranger]), (None, false), "{stranger}");
        assert_eq!(owner(&[&stranger, &a]), (some("a"), false), "{stranger}");
    }
    // what else comes in quotes may do without
    let unquoted = note("20000=a").replace('"', "");
    assert_eq!(owner(&[&unquoted]), (some("a"), true));
}

#[test]
fn note_of_its_own_goes_alone() {
    let packed = rules(&[tcp(20000), tcp(20001)]);
    let (mut notes, ..) = read(&[&packed[0]]);
    assert!(!notes.has_room(CHAIN, &tcp(20001)), "it is noted already");
    assert!(notes.has_room(CHAIN, &tcp(20002)));
    assert!(!notes.has_room("PORTMAPPING-UID-TCP-20022", &tcp(20022)));
    let single = notes.append(CHAIN, &tcp(20002));
    assert_eq!(single, note("20002=8c1f3a52-uid"));
    assert_eq!(notes.withdraw(CHAIN, &tcp(20001)), None);
    assert_eq!(notes.withdraw(CHAIN, &tcp(20002)), Some(single));
    assert_eq!(notes.withdraw(CHAIN, &tcp(20002)), None);
}

proptest! {
    #[test]
    fn owners_are_read_back(
        family in prop::sample::select(Family::ALL.to_vec()),
        seed in prop::collection::vec((any_mapping(Family::V4), any_mapping(Family::V6)), 0..40),
    ) {
        let mut mappings: BTreeMap<Key, Mapping> = BTreeMap::new();
        for (v4, v6) in seed {
            let mapping = if family == Family::V4 { v4 } else { v6 };
            mappings.insert(Key::of(&mapping), mapping);
        }
        let rules = rules(mappings.values());
        for rule in &rules {
            let comment = Rule::parse(rule).unwrap().lone_comment().unwrap().to_owned();
            prop_assert!(comment.len() <= LONGEST, "{}", comment);
        }
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let (_, owners, whole) = read(&rules);
        prop_assert!(whole);
        prop_assert_eq!(owners.0.len(), mappings.len());
        for (key, mapping) in &mappings {
            prop_assert_eq!(owners.of(key), Some(&mapping.owner));
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in hostile_text()) {
        let rules: Vec<&str> = text.lines().collect();
        let _ = read(&rules);
        let _ = chain_of(&text);
    }
}
