use proptest::prelude::*;

use super::*;

fn port(number: u16) -> HostPort {
    HostPort::new(number).unwrap()
}

#[test]
fn ranges_are_parsed_with_spaces_and_as_single_ports() {
    let cases = [
        ("20000-29999", Some((20000, 29999))),
        (" 20000 - 29999 ", Some((20000, 29999))),
        ("8080", Some((8080, 8080))),
        ("1-65535", Some((1, 65535))),
        ("0-10", None),
        ("10-5", None),
        ("65536", None),
        ("+5", None),
        ("-5", None),
        ("1-2-3", None),
        ("", None),
        ("http", None),
    ];
    for (text, expected) in cases {
        let range = text.parse::<PortRange>().ok();
        let found = range.map(|range| (range.first().get(), range.last().get()));
        assert_eq!(found, expected, "{text:?}");
    }
}

#[test]
fn a_range_prints_as_it_is_read() {
    assert_eq!(
        "20000-29999".parse::<PortRange>().unwrap().to_string(),
        "20000-29999"
    );
    assert_eq!("80-80".parse::<PortRange>().unwrap().to_string(), "80");
    assert_eq!("20000-29999".parse::<PortRange>().unwrap().size(), 10_000);
}

#[test]
fn the_error_of_an_invalid_range_shows_a_valid_one() {
    let message = "x"
        .repeat(500)
        .parse::<PortRange>()
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("write 20000-29999") && message.len() < 120,
        "{message}"
    );
}

#[test]
fn protocols_are_upper_case_only() {
    assert_eq!("UDP".parse(), Ok(Protocol::Udp));
    for text in ["udp", "Tcp", "", "ICMP", "TCP "] {
        assert!(text.parse::<Protocol>().is_err(), "{text:?}");
    }
}

#[test]
fn numbers_outside_the_port_space_are_refused() {
    for number in [i64::MIN, -1, 0, 65_536, i64::MAX] {
        assert_eq!(ContainerPort::try_from(number), Err(NoPort(number)));
    }
    assert_eq!(ContainerPort::try_from(65_535).unwrap().get(), 65_535);
}

proptest! {
    #[test]
    fn a_set_agrees_with_a_plain_one(numbers in prop::collection::vec(1u16..200, 0..300)) {
        let mut set = PortSet::default();
        let mut plain = std::collections::BTreeSet::new();
        for number in numbers {
            prop_assert_eq!(set.insert(port(number)), plain.insert(number));
            prop_assert_eq!(set.len(), plain.len());
        }
        prop_assert!(set.iter().map(HostPort::get).eq(plain.iter().copied()));
    }
}

#[test]
fn a_set_holds_both_ends_of_the_port_space() {
    let set: PortSet = [1, 63, 64, 65_535].into_iter().map(port).collect();
    assert_eq!(
        set.iter().map(HostPort::get).collect::<Vec<_>>(),
        [1, 63, 64, 65_535]
    );
    assert!(!set.contains(port(65_534)));
}
