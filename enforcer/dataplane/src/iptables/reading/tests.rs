use super::super::rule::{mapping_rule, rule_without_owner};
use super::super::testing::{any_mapping, hostile_text, map, range};
use super::*;
use crate::settings::Settings;
use proptest::prelude::*;

fn layout() -> Layout {
    Layout::new(Family::V4, Settings::new(range("20000-29999")))
}

fn is_whole(mappings: &[Mapping]) -> bool {
    let mappings: Vec<_> = mappings.iter().cloned().map(Some).collect();
    is_whole_leaf("PORTMAPPING-TCP-0-0", &mappings, &layout())
}

fn with_host(mapping: Mapping, host: &str) -> Mapping {
    Mapping {
        host_ip: Some(host.parse().unwrap()),
        ..mapping
    }
}

fn any_mapping_of_any_family() -> impl Strategy<Value = (Family, Mapping)> {
    prop_oneof![
        any_mapping(Family::V4).prop_map(|m| (Family::V4, m)),
        any_mapping(Family::V6).prop_map(|m| (Family::V6, m)),
    ]
}

#[test]
fn leaf_is_whole_in_any_order_of_ports() {
    let tcp = |port| map(Protocol::Tcp, port, "10.244.1.7", 80);
    assert!(is_whole(&[]));
    assert!(is_whole(&[tcp(20001), tcp(20000), tcp(20079)]));
    assert!(!is_whole(&[tcp(20001), tcp(20001)]), "twice");
    assert!(!is_whole(&[tcp(20080)]), "of the next leaf");
    assert!(!is_whole_leaf("PORTMAPPING-TCP-0-0", &[None], &layout()));
}

#[test]
fn host_address_goes_first() {
    let all = map(Protocol::Tcp, 20000, "10.244.1.7", 80);
    let one = with_host(all.clone(), "192.0.2.1");
    let two = with_host(all.clone(), "192.0.2.2");
    assert!(is_whole(&[one.clone(), two.clone(), all.clone()]));
    assert!(!is_whole(&[one.clone(), all.clone(), two]));
    assert!(!is_whole(&[all, one]));
}

proptest! {
    #[test]
    fn any_table_is_read_without_panic(text in hostile_text()) {
        let known = Known::read(&text, Family::V4, &layout());
        let of_family = |mapping: &Mapping| Family::of(mapping.pod_ip) == Family::V4;
        prop_assert!(known.leaves.values().flatten().all(of_family), "{:?}", known.leaves);
    }

    #[test]
    fn fast_parser_and_full_parser_agree(
        (family, mapping) in any_mapping_of_any_family(),
    ) {
        for rule in [mapping_rule(&mapping), rule_without_owner(&mapping)] {
            let route = rule::written_by_us(&rule, family);
            prop_assert_eq!(&Rule::parse(&rule).unwrap().route(family), &route);
            prop_assert_eq!(&route.as_ref().unwrap().rule(), &rule);
            prop_assert_eq!(route.unwrap().owned_by(mapping.owner.clone()), Some(mapping.clone()));
        }
    }

    #[test]
    fn fast_parser_reads_changed_text_as_no_other_mapping(
        (family, mapping) in any_mapping_of_any_family(),
        at: prop::sample::Index,
        with in prop_oneof![any::<char>(), prop::char::range(' ', 'f')],
        old: bool,
    ) {
        let rule = if old { rule_without_owner(&mapping) } else { mapping_rule(&mapping) };
        let mut chars: Vec<char> = rule.chars().collect();
        *at.get_mut(&mut chars) = with;
        let changed: String = chars.into_iter().collect();
        if let Some(read) = rule::written_by_us(&changed, family) {
            prop_assert_eq!(Rule::parse(&read.rule()), Rule::parse(&changed));
        }
    }
}
