use std::net::IpAddr;

use super::*;

#[test]
fn subnet_is_masked_and_contains_its_addresses() {
    let contains = |subnet: &Subnet, ip: &str| subnet.contains(&ip.parse::<IpAddr>().unwrap());
    let own = subnet("10.244.1.77/24").unwrap();
    assert_eq!(own.to_string(), "10.244.1.0/24");
    assert!(contains(&own, "10.244.1.200"));
    assert!(!contains(&own, "10.244.2.1"));
    assert!(!contains(&own, "::ffff:10.244.1.1"));
    let everything = subnet("fd00::1/0").unwrap();
    assert_eq!(everything.to_string(), "::/0");
    assert!(contains(&everything, "2001:db8::1"));
    let one = subnet("fd00::1/128").unwrap();
    assert!(contains(&one, "fd00::1") && !contains(&one, "fd00::2"));
    for bad in [
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "fd00::/129",
        "x/8",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
    ] {
        assert!(subnet(bad).is_err(), "{bad}");
    }
}
