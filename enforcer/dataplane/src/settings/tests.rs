use super::*;

#[test]
fn subnet_is_masked_and_contains_its_addresses() {
    let subnet: Subnet = "10.244.1.77/24".parse().unwrap();
    assert_eq!(subnet.to_string(), "10.244.1.0/24");
    assert!(subnet.contains("10.244.1.200".parse().unwrap()));
    assert!(!subnet.contains("10.244.2.1".parse().unwrap()));
    assert!(!subnet.contains("::ffff:10.244.1.1".parse().unwrap()));
    let everything: Subnet = "fd00::1/0".parse().unwrap();
    assert_eq!(everything.to_string(), "::/0");
    assert!(everything.contains("2001:db8::1".parse().unwrap()));
    let one: Subnet = "fd00::1/128".parse().unwrap();
    assert!(one.contains("fd00::1".parse().unwrap()) && !one.contains("fd00::2".parse().unwrap()));
    for bad in [
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "fd00::/129",
        "x/8",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
    ] {
        assert!(bad.parse::<Subnet>().is_err(), "{bad}");
    }
}
