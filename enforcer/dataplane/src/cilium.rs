//! Finds the subnets of the node's pods with Cilium.
//!
//! Cilium takes packets between two pods of a node directly from one to the other. The reply of a
//! translated connection then arrives from an address that the client did not connect to. Where Cilium
//! masquerades with iptables, a rule of its own masquerades such connections; where it masquerades in
//! BPF, or not at all, it has none.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::subnet::Subnet;

/// The interface that Cilium makes on each node, to which it routes the pods.
const LINK: &str = "cilium_host";
/// The routes of this network namespace, of the main table and of all tables, and the addresses of IPv6
/// (`net/ipv4/fib_trie.c`, `net/ipv6/route.c` and `net/ipv6/addrconf.c` of Linux).
const ROUTES: &str = "/proc/thread-self/net/route";
const ROUTES_V6: &str = "/proc/thread-self/net/ipv6_route";
const ADDRESSES_V6: &str = "/proc/thread-self/net/if_inet6";

/// Returns the subnets of pods; none on a node without Cilium.
pub(super) fn subnets() -> Vec<Subnet> {
    // a file that cannot be read lists nothing: without IPv6 there is none
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let mut found: Vec<Subnet> = read(ROUTES).lines().filter_map(subnet).collect();
    let addresses: Vec<Ipv6Addr> = read(ADDRESSES_V6).lines().filter_map(own_address).collect();
    if !addresses.is_empty() {
        let routes = read(ROUTES_V6);
        let routes = routes.lines();
        found.extend(routes.filter_map(|line| subnet_v6(line, &addresses)));
    }
    found.sort();
    found.dedup();
    found
}

/// Reads a line `DEVICE DESTINATION GATEWAY FLAGS REFS USE METRIC MASK ...`, with addresses as numbers in
/// the byte order of the machine. The gateway is the address of Cilium's interface. There may be a route to
/// the pods of each other node, too.
fn subnet(line: &str) -> Option<Subnet> {
    let mut words = line.split_whitespace();
    if words.next()? != LINK {
        return None;
    }
    let mut address = |nth| {
        let number = u32::from_str_radix(words.nth(nth)?, 16).ok()?;
        Some(Ipv4Addr::from(number.to_ne_bytes()))
    };
    let (network, gateway, mask) = (address(0)?, address(0)?, address(4)?);
    let length = u8::try_from(mask.to_bits().leading_ones()).ok()?;
    of_node(network.into(), length, &[gateway.into()])
}

/// Reads a line `DESTINATION LENGTH SOURCE LENGTH GATEWAY METRIC REFS USE FLAGS DEVICE`, in hexadecimal.
fn subnet_v6(line: &str, addresses: &[Ipv6Addr]) -> Option<Subnet> {
    let mut words = line.split_whitespace();
    let network = address_v6(words.next()?)?;
    let length = u8::from_str_radix(words.next()?, 16).ok()?;
    if words.nth(7)? != LINK {
        return None;
    }
    let addresses: Vec<IpAddr> = addresses.iter().map(|ip| IpAddr::V6(*ip)).collect();
    of_node(network.into(), length, &addresses)
}

/// Reads a line `ADDRESS INDEX LENGTH SCOPE FLAGS DEVICE`, in hexadecimal; None unless it is a global address
/// of Cilium's interface.
fn own_address(line: &str) -> Option<Ipv6Addr> {
    let mut words = line.split_whitespace();
    let address = address_v6(words.next()?)?;
    let is_global = words.nth(2)? == "00";
    (is_global && words.nth(1)? == LINK).then_some(address)
}

fn address_v6(word: &str) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from_bits(u128::from_str_radix(word, 16).ok()?))
}

/// Returns the subnet of a route if it is that of the node's own pods: the address of Cilium's interface is
/// in it.
fn of_node(network: IpAddr, length: u8, own: &[IpAddr]) -> Option<Subnet> {
    let subnet = Subnet::new(network, length).ok()?;
    let is_own = own.iter().any(|ip| *ip != network && subnet.contains(ip));
    (length > 0 && is_own).then_some(subnet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn routes_to_the_nodes_own_pods_are_read() {
        let number = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let line = |device: &str, to: [u8; 4], mask: [u8; 4]| {
            let (to, via, mask) = (number(to), number([10, 244, 1, 37]), number(mask));
            format!("{device}\t{to}\t{via}\t0003\t0\t0\t0\t{mask}\t0\t0\t0")
        };
        let (own, other) = ([10, 244, 1, 0], [10, 244, 2, 0]);
        let mask = [255, 255, 255, 0];
        let read = subnet(&line(LINK, own, mask));
        assert_eq!(read, "10.244.1.0/24".parse().ok());
        for (device, to, mask) in [
            ("eth0", own, mask),
            (LINK, other, mask),
            (LINK, [10, 244, 1, 37], [255; 4]),
            (LINK, [0; 4], [0; 4]),
        ] {
            assert_eq!(subnet(&line(device, to, mask)), None, "{device} {to:?}");
        }
    }

    #[test]
    fn routes_to_the_nodes_own_pods_are_read_in_ipv6() {
        let line = |to: &str, length: &str, device: &str| {
            let none = "0".repeat(32);
            format!(
                "{to} {length} {none} 00 {none} 00000400 00000001 00000000 00000001 {device:>8}"
            )
        };
        let address = "fd000244000000010000000000001234 07 80 00 80 cilium_host";
        let own_ip = own_address(address).unwrap();
        assert_eq!(own_ip, "fd00:244:0:1::1234".parse::<Ipv6Addr>().unwrap());
        let of_link = "fe800000000000000000000000001234 07 40 20 80 cilium_host";
        assert_eq!(own_address(of_link), None);
        assert_eq!(own_address(&address.replace(LINK, "eth0")), None);
        let own = "fd000244000000010000000000000000";
        let read = subnet_v6(&line(own, "40", LINK), &[own_ip]);
        assert_eq!(read, "fd00:244:0:1::/64".parse().ok());
        let other = "fd000244000000020000000000000000";
        for (to, length, device) in [(own, "40", "eth0"), (other, "40", LINK), (own, "00", LINK)] {
            let read = subnet_v6(&line(to, length, device), &[own_ip]);
            assert_eq!(read, None, "{to} {device}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}") {
            let _ = (subnet(&text), subnet_v6(&text, &[]), own_address(&text));
        }
    }
}
