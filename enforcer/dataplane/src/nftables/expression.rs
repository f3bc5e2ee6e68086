//! The expressions of our rules (`linux/netfilter/nf_tables.h`), and their comparison with a rule
//! as the kernel lists it.
//!
//! Registers have the numbers that the kernel lists, so that a rule reads back as it was written.

use std::net::IpAddr;

use portmapping_shared::PortRange;

use crate::family::octets;
use crate::netlink::{Attributes, Encoder};

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEM: u16 = 1;
/// `NFTA_DATA_VALUE`.
pub(super) const DATA_VALUE: u16 = 1;
/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const EXPR: (u16, u16) = (1, 2);

/// Registers of 16 bytes, and the second and third quarter of the first.
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const REG_3: u32 = 3;
const REG_1B: u32 = 9;
const REG_1C: u32 = 10;

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
pub(super) const CT_STATUS: u32 = 2;
const CT_PROTO_DST: u32 = 12;
const CT_DST_IP: u32 = 20;
const CT_DST_IP6: u32 = 22;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const STATE_NEW: u32 = 8;
/// `NF_CT_STATE_INVALID_BIT`, and the bits of established and related packets.
const STATE_INVALID: u32 = 1;
const STATE_KNOWN: u32 = 2 | 4;
/// `IPS_DST_NAT`.
pub(super) const STATUS_DNAT: u32 = 0x20;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`: the kernel adds the first by itself.
const NAT_ADDRESS_AND_PORT: u32 = 1 | 2;
const VERDICT_RETURN: i32 = -5;
/// `NF_DROP`.
const VERDICT_DROP: i32 = 0;

/// One rule being written: its expressions, as the list that the kernel expects.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule(Encoder);

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, and what differs between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ip {
    pub(super) nfproto: u8,
    /// Length of an address.
    pub(super) length: u32,
    /// Offsets of the source and the destination address in the IP header.
    saddr: u32,
    daddr: u32,
    /// The register of the port that follows an address.
    port_register: u32,
    original_daddr: u32,
}

impl Ip {
    pub(super) const V4: Self = Self {
        nfproto: 2,
        length: 4,
        saddr: 12,
        daddr: 16,
        port_register: REG_1B,
        original_daddr: CT_DST_IP,
    };
    pub(super) const V6: Self = Self {
        nfproto: 10,
        length: 16,
        saddr: 8,
        daddr: 24,
        port_register: REG_2,
        original_daddr: CT_DST_IP6,
    };
}

impl Rule {
    fn expression(mut self, name: &str, data: impl FnOnce(&mut Encoder)) -> Self {
        self.0.nest(LIST_ELEM, |encoder| {
            encoder.text(EXPR.0, name);
            encoder.nest(EXPR.1, data);
        });
        self
    }

    fn numbers(self, name: &str, numbers: &[(u16, u32)]) -> Self {
        self.expression(name, |encoder| {
            for (kind, number) in numbers {
                encoder.be32(*kind, *number);
            }
        })
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.numbers("meta", &[(2, key), (1, register)])
    }

    fn payload(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        self.numbers(
            "payload",
            &[(1, register), (2, base), (3, offset), (4, length)],
        )
    }

    fn compare(self, register: u32, operator: u32, value: &[u8]) -> Self {
        self.expression("cmp", |encoder| {
            encoder.be32(1, register);
            encoder.be32(2, operator);
            encoder.nest(3, |encoder| encoder.bytes(DATA_VALUE, value));
        })
    }

    fn mask(self, register: u32, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or_default();
        self.expression("bitwise", |encoder| {
            encoder.be32(1, register);
            encoder.be32(2, register);
            encoder.be32(3, length);
            encoder.nest(4, |encoder| encoder.bytes(DATA_VALUE, mask));
            encoder.nest(5, |encoder| encoder.bytes(DATA_VALUE, &vec![0; mask.len()]));
        })
    }

    fn lookup(self, register: u32, set: &str, into: Option<u32>) -> Self {
        self.expression("lookup", |encoder| {
            encoder.text(1, set);
            encoder.be32(2, register);
            if let Some(register) = into {
                encoder.be32(3, register);
            }
            // not inverted
            encoder.be32(5, 0);
        })
    }

    fn connection(self, key: u32, mask: u32) -> Self {
        self.numbers("ct", &[(2, key), (1, REG_1)])
            .mask(REG_1, &mask.to_ne_bytes())
            .compare(REG_1, NOT_EQUAL, &[0; 4])
    }

    fn original(self, key: u32, register: u32) -> Self {
        self.expression("ct", |encoder| {
            encoder.be32(2, key);
            encoder.be32(1, register);
            encoder.bytes(3, &[0]);
        })
    }

    /// Matches packets of one IP version.
    pub(super) fn version(self, ip: Ip) -> Self {
        self.meta(META_NFPROTO, REG_1)
            .compare(REG_1, EQUAL, &[ip.nfproto])
    }

    /// Matches packets whose protocol and port (and address) are in the map, and loads their value
    /// into the registers.
    pub(super) fn mapped(self, ip: Ip, bound: bool, map: &str) -> Self {
        let key = self
            .meta(META_L4PROTO, REG_1)
            .payload(TRANSPORT, 2, 2, REG_1B);
        let key = if bound {
            key.payload(NETWORK, ip.daddr, ip.length, REG_1C)
        } else {
            key
        };
        key.lookup(REG_1, map, Some(REG_1))
    }

    /// Matches packets whose connection has its original destination in the map: protocol and port
    /// (and address).
    pub(super) fn begun_to_mapped(self, ip: Ip, bound: bool, map: &str) -> Self {
        let key = self
            .meta(META_L4PROTO, REG_1)
            .original(CT_PROTO_DST, REG_1B);
        let key = if bound {
            key.original(ip.original_daddr, REG_1C)
        } else {
            key
        };
        key.lookup(REG_1, map, Some(REG_1))
    }

    /// Matches packets whose connection has its original destination in the set of addresses.
    pub(super) fn begun_to(self, ip: Ip, set: &str) -> Self {
        self.original(ip.original_daddr, REG_3)
            .lookup(REG_3, set, None)
    }

    /// Matches packets to an address in the set; does not use the first two registers.
    pub(super) fn sent_to_any_of(self, ip: Ip, set: &str) -> Self {
        self.payload(NETWORK, ip.daddr, ip.length, REG_3)
            .lookup(REG_3, set, None)
    }

    /// Matches packets to a network.
    pub(super) fn sent_to_network(self, ip: Ip, network: IpAddr, netmask: IpAddr) -> Self {
        self.payload(NETWORK, ip.daddr, ip.length, REG_3)
            .mask(REG_3, &octets(netmask))
            .compare(REG_3, EQUAL, &octets(network))
    }

    /// Ends the rule: the connection goes to the endpoint that the map returned.
    pub(super) fn dnat(self, ip: Ip) -> Self {
        let numbers = [
            (1, 1),
            (2, ip.nfproto.into()),
            (3, REG_1),
            (5, ip.port_register),
            (7, NAT_ADDRESS_AND_PORT),
        ];
        self.numbers("nat", &numbers)
    }

    /// Matches packets whose source is their destination. The set holds every pair of equal bytes;
    /// the last bytes are compared first, because usually they differ.
    pub(super) fn between_equals(self, ip: Ip, set: &str) -> Self {
        (0..ip.length).rev().fold(self, |rule, byte| {
            rule.payload(NETWORK, ip.saddr + byte, 1, REG_1)
                .payload(NETWORK, ip.daddr + byte, 1, REG_1B)
                .lookup(REG_1, set, None)
        })
    }

    /// Matches packets between two addresses of a network.
    pub(super) fn within(self, ip: Ip, network: IpAddr, netmask: IpAddr) -> Self {
        let (network, netmask) = (octets(network), octets(netmask));
        [ip.saddr, ip.daddr].into_iter().fold(self, |rule, offset| {
            rule.payload(NETWORK, offset, ip.length, REG_1)
                .mask(REG_1, &netmask)
                .compare(REG_1, EQUAL, &network)
        })
    }

    /// Matches packets of connections whose destination was translated.
    pub(super) fn redirected(self) -> Self {
        self.connection(CT_STATUS, STATUS_DNAT)
    }

    /// Ends the rule: the packet is masqueraded, so that the reply comes back to this node.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", |_| {})
    }

    /// Matches the first datagram of a flow to a port of the range.
    pub(super) fn new_datagram_to(self, range: PortRange) -> Self {
        self.meta(META_L4PROTO, REG_1)
            .compare(REG_1, EQUAL, &[17])
            .payload(TRANSPORT, 2, 2, REG_1)
            .compare(REG_1, AT_LEAST, &range.first().get().to_be_bytes())
            .compare(REG_1, AT_MOST, &range.last().get().to_be_bytes())
            .connection(CT_STATE, STATE_NEW)
    }

    /// Matches datagrams whose port is in the set.
    pub(super) fn port_in(self, set: &str) -> Self {
        self.payload(TRANSPORT, 2, 2, REG_1)
            .lookup(REG_1, set, None)
    }

    /// Matches packets that a socket can receive from the device on which they arrived.
    pub(super) fn awaited(self) -> Self {
        // the value (0 or 1) does not matter: without a socket the rule does not match
        self.numbers("socket", &[(1, 0), (2, REG_1)])
            .compare(REG_1, AT_MOST, &[1])
    }

    /// Matches packets of connections that conntrack knows.
    pub(super) fn of_known_connection(self) -> Self {
        self.connection(CT_STATE, STATE_KNOWN)
    }

    /// Matches packets that conntrack cannot assign to a connection.
    pub(super) fn invalid(self) -> Self {
        self.connection(CT_STATE, STATE_INVALID)
    }

    /// Ends the rule: the packet goes on to the next chain.
    pub(super) fn leave(self) -> Self {
        self.verdict(VERDICT_RETURN)
    }

    /// Ends the rule: the packet is dropped.
    pub(super) fn drop(self) -> Self {
        self.verdict(VERDICT_DROP)
    }

    fn verdict(self, code: i32) -> Self {
        self.expression("immediate", |encoder| {
            encoder.be32(1, 0);
            encoder.nest(2, |encoder| {
                encoder.nest(2, |encoder| encoder.bytes(1, &code.to_be_bytes()));
            });
        })
    }

    /// Ends the rule: the sender gets the ICMP error "port unreachable" of its IP version.
    pub(super) fn refuse(self) -> Self {
        self.expression("reject", |encoder| {
            encoder.be32(1, 2);
            encoder.bytes(2, &[1]);
        })
    }

    /// Returns the list of expressions.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns whether these are the expressions of this rule, as the kernel lists them.
    pub(super) fn is(&self, found: Attributes<'_>) -> bool {
        let expected = Attributes::new(self.as_bytes());
        let mut found = found;
        let same = expected.into_iter().all(|expected| {
            Iterator::next(&mut found).is_some_and(|found| {
                found.kind == expected.kind && covers(expected.value, found.value)
            })
        });
        same && Iterator::next(&mut found).is_none()
    }
}

/// Returns whether everything that we wrote is there. The kernel adds attributes with default
/// values, and newer kernels add more of them.
fn covers(expected: &[u8], found: &[u8]) -> bool {
    Attributes::new(expected).all(|expected| {
        let Some(found) = Attributes::new(found).find(expected.kind) else {
            return expected.nested && expected.value.is_empty();
        };
        if expected.nested {
            covers(expected.value, found.value)
        } else {
            expected.value == found.value
        }
    })
}

#[cfg(test)]
mod tests;
