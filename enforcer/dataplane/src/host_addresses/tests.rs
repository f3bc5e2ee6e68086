use super::*;

#[test]
fn selections_are_read() {
    let subnet = |text: &str| text.parse().unwrap();
    let read = |text: &str| text.parse::<AddressSelection>().unwrap();
    assert_eq!(read("node"), AddressSelection::Node);
    assert_eq!(read("all"), AddressSelection::All);
    let both = AddressSelection::Within(vec![subnet("10.0.0.0/24"), subnet("fd00::/64")]);
    assert_eq!(read("10.0.0.0/24, fd00::/64"), both);
    let one = AddressSelection::Within(vec![subnet("10.0.0.11/32"), subnet("fd00::1/128")]);
    assert_eq!(read("10.0.0.11,fd00::1"), one);
    for wrong in ["", "nodes", "10.0.0.0/33", "10.0.0.0/24,", "node,all"] {
        assert!(wrong.parse::<AddressSelection>().is_err(), "{wrong}");
    }
}

#[test]
fn addresses_of_one_machine_or_link_are_left_out() {
    let reachable = |ip: &str| is_reachable(ip.parse().unwrap());
    for left_out in [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "169.254.7.7",
        "fe80::1",
        "224.0.0.1",
    ] {
        assert!(!reachable(left_out), "{left_out}");
    }
    for host in ["172.30.0.1", "fd30::1", "203.0.113.7"] {
        assert!(reachable(host), "{host}");
    }
}
