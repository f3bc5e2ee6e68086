use proptest::prelude::*;

use super::super::testing::{any_mapping, hostile_text, map};
use super::*;

const DNAT: &str = "-p tcp -m tcp --dport 20000 -m comment --comment \"portmapping:8c1f3a52-uid\" -j DNAT --to-destination 10.244.1.7:80";

/// Returns the mapping of a rule with its owner, or without one, as snapshots before 0.1.0 wrote it.
fn mapping_of(rule: &str, family: Family) -> Option<Mapping> {
    let route = Rule::parse(rule)?.route(family)?;
    let owner = route.owner.clone();
    route.owned_by(owner.or_else(|| "8c1f3a52-uid".parse().ok())?)
}

#[test]
fn reads_our_own_rule() {
    let mapping = map(Protocol::Tcp, 20000, "10.244.1.7", 80);
    assert_eq!(mapping_of(DNAT, Family::V4), Some(mapping.clone()));
    let bound = format!("-d 192.0.2.1/32 {DNAT}");
    let host_ip = Some("192.0.2.1".parse().unwrap());
    assert_eq!(
        mapping_of(&bound, Family::V4),
        Some(Mapping { host_ip, ..mapping })
    );
    let bare = DNAT.replace("-m comment --comment \"portmapping:8c1f3a52-uid\" ", "");
    assert_eq!(written_by_us(&bare, Family::V4).unwrap().owner, None);
    assert_eq!(mapping_of(&bare, Family::V4), mapping_of(DNAT, Family::V4));
    let v6 = DNAT.replace("10.244.1.7:80", "[fd00::7]:80");
    assert_eq!(
        mapping_of(&v6, Family::V6),
        Some(map(Protocol::Tcp, 20000, "fd00::7", 80))
    );
}

#[test]
fn rejects_every_edit_of_it() {
    for (from, to) in [
        ("portmapping:", "portmapping "),
        ("portmapping:8c1f3a52-uid", "portmapping:"),
        ("portmapping:8c1f3a52-uid", "portmapping:a b"),
        ("--dport", "! --dport"),
        ("--dport 20000", "--dport 20000:20001"),
        ("--dport 20000", "--dport 0"),
        ("--dport 20000", "--sport 20000"),
        ("-p tcp", "-p icmp"),
        ("-p tcp", "-s 10.0.0.1/32 -p tcp"),
        ("-p tcp", "-d 192.0.2.0/24 -p tcp"),
        ("-p tcp", "! -d 192.0.2.1/32 -p tcp"),
        ("-p tcp", "-d fd00::1/128 -p tcp"),
        ("-p tcp", "-i eth0 -p tcp"),
        ("-j DNAT", "-j REDIRECT"),
        ("10.244.1.7:80", "10.244.1.7"),
        ("10.244.1.7:80", "10.244.1.7:80-90"),
        ("10.244.1.7:80", "10.244.1.7:80 --random"),
        ("10.244.1.7:80", "10.244.1.7:0"),
        ("10.244.1.7:80", "[fd00::7]:80"),
    ] {
        let edited = DNAT.replace(from, to);
        assert_ne!(edited, DNAT);
        assert_eq!(mapping_of(&edited, Family::V4), None, "{edited}");
    }
}

#[test]
fn spelling_makes_no_difference() {
    let same = [
        ("-p tcp -m tcp --dport 5 -g A", "-p tcp --dport 5 -g A"),
        (
            "-p tcp -m tcp --dport 5:5 -g A",
            "-p tcp -m tcp --dport 5 -g A",
        ),
        ("-p 132 --dport 5 -g A", "-p sctp --dport 5 -g A"),
        ("-s 10.0.0.1/32 -j A", "-s 10.0.0.1 -j A"),
        ("-s fd00:0::1/128 -j A", "-s fd00::1 -j A"),
        (
            "-m comment --comment \"a\" -j A",
            "-j A -m comment --comment a",
        ),
    ];
    for (a, b) in same {
        assert_eq!(Rule::parse(a).unwrap(), Rule::parse(b).unwrap());
    }
    let different = [
        ("-s 10.0.0.0/24 -j A", "-s 10.0.0.0 -j A"),
        ("-s fd00::/32 -j A", "-s fd00:: -j A"),
        ("! -s 10.0.0.1 -j A", "-s 10.0.0.1 -j A"),
        ("-j A", "-g A"),
    ];
    for (a, b) in different {
        assert_ne!(Rule::parse(a).unwrap(), Rule::parse(b).unwrap());
    }
}

#[test]
fn fast_parser_accepts_no_other_spelling() {
    let v4 = format!("-d 192.0.2.1/32 {DNAT}");
    let v6 = "-d fd00::1/128 -p tcp -m tcp --dport 20000 -j DNAT --to-destination [fd00::7]:80";
    assert!(written_by_us(&v4, Family::V4).is_some());
    assert!(written_by_us(v6, Family::V6).is_some());
    for (family, from, to) in [
        (Family::V4, "--dport 20000", "--dport 00001"),
        (Family::V4, "--dport 20000", "--dport +2000"),
        (Family::V4, "10.244.1.7:80", "10.244.1.7:0080"),
        (Family::V4, "192.0.2.1/32", "192.0.2.1/+32"),
        (Family::V6, "[fd00::7]:80", "[FD00::7]:80"),
        (Family::V6, "[fd00::7]:80", "[fd00:0::7]:80"),
        (Family::V6, "fd00::1/128", "fd00::0:1/128"),
    ] {
        let rule = if family == Family::V4 { &*v4 } else { v6 };
        let edited = rule.replace(from, to);
        assert_ne!(edited, rule);
        assert_eq!(written_by_us(&edited, family), None, "{edited}");
    }
}

#[test]
fn quoted_text_is_one_value() {
    let rule = Rule::parse(r#"-m comment --comment "a \"b\" -j PORTMAPPING" -j OTHER"#).unwrap();
    assert_eq!(rule.target(), Some("OTHER"));
    assert_eq!(rule.value("--comment"), Some(r#"a "b" -j PORTMAPPING"#));
    assert_eq!(Rule::parse("--comment \"never closed"), None);
    assert_eq!(Rule::parse("value without option"), None);
}

#[test]
fn knows_our_chains_by_name() {
    for ours in ["PORTMAPPING", "PORTMAPPING-MASQ", "PORTMAPPING-TCP-1-2"] {
        assert!(is_our_chain(ours));
    }
    for foreign in [
        "",
        "PORTMAPPINGS",
        "KUBE-PORTMAPPING",
        "portmapping",
        "PORTMAPPIN",
    ] {
        assert!(!is_our_chain(foreign));
    }
}

proptest! {
    #[test]
    fn never_panics(text in hostile_text()) {
        if let Some(rule) = Rule::parse(&text) {
            let _ = (rule.target(), rule.route(Family::V4), rule.route(Family::V6));
        }
        let _ = (written_by_us(&text, Family::V4), written_by_us(&text, Family::V6));
    }

    #[test]
    fn reads_back_what_was_written(v4 in any_mapping(Family::V4), v6 in any_mapping(Family::V6)) {
        for (family, mapping) in [(Family::V4, v4), (Family::V6, v6)] {
            let owner = "8c1f3a52-uid".parse().unwrap();
            let mapping = Mapping { owner, ..mapping };
            prop_assert_eq!(mapping_of(&mapping_rule(&mapping), family), Some(mapping));
        }
    }
}
