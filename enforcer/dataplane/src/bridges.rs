//! Finds subnets whose pods share a bridge on which packets bypass the IP rules of netfilter.
//!
//! Where `bridge-nf-call-iptables` is 0, packets between two ports of a bridge pass no rules. The
//! reply of a translated connection then goes directly to the other pod, from an address that this
//! pod did not connect to. Only such connections must be masqueraded. The pods of a node with Cilium
//! are such pods, too.

use std::net::IpAddr;

use super::cilium;
use super::family::{self, Family};
use super::netlink::{Attributes, Encoder, Header, Message, NetlinkError, Options, Socket};
use super::subnet::Subnet;

/// `RTM_NEWLINK` and `RTM_GETLINK` (linux/rtnetlink.h).
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
/// `RTM_NEWADDR` and `RTM_GETADDR`.
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
/// Length of `ifinfomsg`, of which the encoder writes the first four bytes.
const LINK_BYTES: usize = 16;
/// Length of `ifaddrmsg`.
const ADDRESS_BYTES: usize = 8;
/// `IFLA_LINKINFO`, and `IFLA_INFO_KIND` and `IFLA_INFO_DATA` in it (`linux/if_link.h`).
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
/// `IFLA_BR_NF_CALL_IPTABLES` and `IFLA_BR_NF_CALL_IP6TABLES`: the same setting for one bridge.
const CALL_IPTABLES: u16 = 36;
const CALL_IP6TABLES: u16 = 37;
/// `IFA_ADDRESS` (`linux/if_addr.h`).
const ADDRESS: u16 = 1;

/// The bridges of the network namespace, as of the last read.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    subnets: Vec<Subnet>,
}

impl Bridges {
    /// Returns whether a pod is in one of these subnets.
    pub(super) fn cover(&self, pod: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(&pod))
    }

    /// Reads the bridges again. Returns the subnets if they have changed.
    pub(super) fn refresh(&mut self) -> Option<&[Subnet]> {
        let unseen = Family::ALL.map(|family| !are_bridged_packets_seen(family));
        let mut found = if unseen.contains(&true) {
            match Self::read(unseen) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "the node's bridges cannot be read; trying again at the next check");
                    return None;
                }
            }
        } else {
            Vec::new()
        };
        found.extend(cilium::subnets());
        (found != self.subnets).then(|| {
            self.subnets = found;
            self.subnets.as_slice()
        })
    }

    fn read(unseen: [bool; 2]) -> Result<Vec<Subnet>, NetlinkError> {
        let mut socket = Socket::open(Options {
            protocol: None,
            ..Options::default()
        })?;
        let mut bridges = Vec::new();
        // with this attribute the kernel lists bridges only
        let only_bridges = |encoder: &mut Encoder| {
            encoder.raw(&[0; LINK_BYTES - 4]);
            encoder.nest(LINK_INFO, |encoder| encoder.text(INFO_KIND, "bridge"));
        };
        socket.dump(all(GET_LINK), only_bridges, |message| {
            bridges.extend(bridge(message));
        })?;
        if bridges.is_empty() {
            return Ok(Vec::new());
        }
        let mut subnets = Vec::new();
        let rest = |encoder: &mut Encoder| encoder.raw(&[0; ADDRESS_BYTES - 4]);
        socket.dump(all(GET_ADDRESS), rest, |message| {
            let Some((index, subnet)) = subnet(message) else {
                return;
            };
            let of_bridge = bridges.iter().find(|bridge| bridge.index == index);
            let family = usize::from(Family::of(subnet.network()) == Family::V6);
            if of_bridge.is_some_and(|bridge| unseen[family] && !bridge.sees[family]) {
                subnets.push(subnet);
            }
        })?;
        subnets.sort();
        subnets.dedup();
        Ok(subnets)
    }
}

/// Reads the setting of the whole network namespace. Without the kernel module `br_netfilter`,
/// bridged packets pass no rules.
fn are_bridged_packets_seen(family: Family) -> bool {
    let table = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let value = std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{table}"));
    value.is_ok_and(|value| value.trim() != "0")
}

fn all(kind: u16) -> Header {
    Header {
        kind,
        ..Header::default()
    }
}

struct Bridge {
    index: u32,
    /// Whether its packets pass the rules of IPv4, and those of IPv6.
    sees: [bool; 2],
}

fn bridge(message: &Message<'_>) -> Option<Bridge> {
    let fields = message.payload.first_chunk::<LINK_BYTES>()?;
    let info = Attributes::new(message.payload.get(LINK_BYTES..)?).find(LINK_INFO)?;
    let kind = info.attributes().find(INFO_KIND)?;
    if message.kind != NEW_LINK || kind.text() != Some("bridge") {
        return None;
    }
    let data = info.attributes().find(INFO_DATA);
    let sees = [CALL_IPTABLES, CALL_IP6TABLES].map(|switch| {
        let value = data.and_then(|data| data.attributes().find(switch));
        value.is_some_and(|value| value.value.first().is_some_and(|on| *on != 0))
    });
    let [_, _, _, _, a, b, c, d, ..] = *fields;
    let index = u32::from_ne_bytes([a, b, c, d]);
    Some(Bridge { index, sees })
}

/// Returns the interface index and the subnet of an address; None unless its scope is global.
fn subnet(message: &Message<'_>) -> Option<(u32, Subnet)> {
    let fields = message.payload.first_chunk::<ADDRESS_BYTES>()?;
    let [_, length, _, scope, a, b, c, d] = *fields;
    if message.kind != NEW_ADDRESS || scope != 0 {
        return None;
    }
    let address = Attributes::new(message.payload.get(ADDRESS_BYTES..)?).find(ADDRESS)?;
    let ip = family::address(address.value)?;
    let subnet = Subnet::new(ip, length).ok()?.trunc();
    Some((u32::from_ne_bytes([a, b, c, d]), subnet))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Message<'_> {
        Message {
            kind,
            flags: 0,
            sequence: 0,
            port: 0,
            payload,
        }
    }

    #[test]
    fn addresses_are_read() {
        #[rustfmt::skip]
        let payload = [
            2, 24, 0, 0, 7, 0, 0, 0,
            8, 0, 1, 0, 10, 88, 0, 1,
        ];
        let found = subnet(&message(NEW_ADDRESS, &payload));
        let expected = "10.88.0.0/24".parse().unwrap();
        assert_eq!(found, Some((u32::from_ne_bytes([7, 0, 0, 0]), expected)));
        let mut of_the_link = payload;
        of_the_link[3] = 253;
        assert_eq!(subnet(&message(NEW_ADDRESS, &of_the_link)), None);
        let mut impossible = payload;
        impossible[1] = 33;
        assert_eq!(subnet(&message(NEW_ADDRESS, &impossible)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = bridge(&message(NEW_LINK, &payload)).map(|bridge| bridge.sees);
            let _ = subnet(&message(NEW_ADDRESS, &payload));
        }
    }
}
