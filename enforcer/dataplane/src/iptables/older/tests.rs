use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::layout::Layout;
use super::super::reading::Known;
use super::super::testing::{hostile_text, map, range};
use super::*;
use crate::family::Family;
use crate::settings::Settings;
use portmapping_shared::Mapping;

/// The rules of a snapshot before 0.1.0 in the kernel, with and without the match that compared
/// addresses.
const TABLES: [&str; 2] = [
    include_str!("../../../tests/netns/older/compared.iptables"),
    include_str!("../../../tests/netns/older/per-pod.iptables"),
];

fn owned(mapping: &Mapping, owner: &str) -> Mapping {
    Mapping {
        owner: owner.parse().unwrap(),
        ..mapping.clone()
    }
}

#[test]
fn mappings_are_read_with_their_owners() {
    let (pod1, pod2) = ("10.88.0.11", "10.88.0.12");
    let (uid1, uid2) = ("uid-10-88-0-11", "uid-10-88-0-12");
    let bound = Mapping {
        host_ip: Some("172.30.0.1".parse().unwrap()),
        ..map(Protocol::Tcp, 20002, pod2, 9041)
    };
    let expected = BTreeSet::from([
        owned(&map(Protocol::Tcp, 20000, pod1, 9040), uid1),
        owned(&map(Protocol::Udp, 20000, pod1, 9040), uid1),
        owned(&map(Protocol::Tcp, 20001, pod2, 9040), uid2),
        owned(&bound, uid2),
        owned(&map(Protocol::Tcp, 20002, pod1, 9042), uid1),
        owned(&map(Protocol::Tcp, 30000, pod2, 9043), uid2),
    ]);
    let layout = Layout::new(Family::V4, Settings::new(range("20000-20099")));
    for table in TABLES {
        let known = Known::read(table, Family::V4, &layout);
        assert_eq!(known.mappings().cloned().collect::<BTreeSet<_>>(), expected);
        // every chain of that layout is replaced
        assert!(!known.damage.chains.is_empty());
        assert!(
            known
                .damage
                .obsolete
                .iter()
                .any(|chain| chain.contains("UID"))
        );
    }
}

#[test]
fn a_mapping_with_two_owners_has_none() {
    let again = |owner: &str| {
        let rule = format!(
            "-A PORTMAPPING-UID-TCP-OTHER -m comment --comment \"portmapping:20000={owner}\""
        );
        TABLES[1].replacen("COMMIT", &format!("{rule}\nCOMMIT"), 1)
    };
    let layout = Layout::new(Family::V4, Settings::new(range("20000-20099")));
    let has = |text: &str| {
        let known = Known::read(text, Family::V4, &layout);
        let first = map(Protocol::Tcp, 20000, "10.88.0.11", 9040);
        let first = owned(&first, "uid-10-88-0-11");
        known.mappings().any(|mapping| *mapping == first)
    };
    assert!(has(&again("uid-10-88-0-11")));
    assert!(!has(&again("uid-of-another-pod")));
}

proptest! {
    #[test]
    fn any_table_is_read_without_panic(text in hostile_text()) {
        let _ = Owners::read(&Saved::parse(&text));
    }
}
