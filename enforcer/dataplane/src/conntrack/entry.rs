//! Conntrack entries as netlink carries them (`linux/netfilter/nfnetlink_conntrack.h`), and the
//! messages that list and delete them.

use std::net::IpAddr;

use portmapping_shared::{Mapping, Protocol};

use crate::family::{Family, address};
use crate::netlink::{Attributes, Encoder, Header, Message};

/// `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE` of `NFNL_SUBSYS_CTNETLINK`.
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
/// `CTA_*`.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;
/// `CTA_TUPLE_*`.
const IP: u16 = 1;
const PROTO: u16 = 2;
/// `CTA_IP_*`: source and destination of IPv4, then of IPv6.
const ADDRESSES: [(u16, u16); 2] = [(1, 2), (3, 4)];
/// `CTA_PROTO_*`.
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// `CTA_FILTER_*`, each a set of `CTA_FILTER_F_*` bits: which parts of that tuple must match.
const ORIG_FLAGS: u16 = 1;
const REPLY_FLAGS: u16 = 2;
const MATCH_NUMBER: u32 = 8;
const MATCH_DESTINATION_PORT: u32 = 32;
/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 2;
/// `IPS_ASSURED` (`linux/netfilter/nf_conntrack_common.h`): for TCP, the handshake is complete.
const ASSURED: u32 = 4;
/// `NLA_F_NESTED`: the bit of an attribute's type which says that it contains attributes.
const NESTED: u16 = 0x8000;

/// A flow: where it was sent, which endpoint answers it, and how the kernel identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) protocol: Protocol,
    pub(super) source: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) port: u16,
    pub(super) answered_by: IpAddr,
    pub(super) answering_port: u16,
    /// Whether a reply was seen.
    pub(super) is_answered: bool,
    /// Whether the handshake of a connection is complete.
    pub(super) is_established: bool,
    name: Name,
}

/// The attributes by which the kernel finds an entry, unchanged: tuple, zone and id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Name(Vec<(u16, Vec<u8>)>);

/// Builds the request for the entries of a protocol, or of one port of it.
///
/// Kernels before 5.8 ignore the filter and send all entries, so the caller must check each.
pub(super) fn list(
    family: Family,
    protocol: Protocol,
    port: Option<u16>,
) -> (Header, impl FnOnce(&mut Encoder)) {
    let body = move |encoder: &mut Encoder| {
        encoder.nest(TUPLE_ORIG, |tuple| {
            tuple.nest(PROTO, |proto| {
                proto.bytes(NUMBER, &[protocol.number()]);
                if let Some(port) = port {
                    proto.bytes(DESTINATION_PORT, &port.to_be_bytes());
                }
            });
        });
        let port = port.map_or(0, |_| MATCH_DESTINATION_PORT);
        encoder.nest(FILTER, |filter| {
            filter.bytes(ORIG_FLAGS, &(MATCH_NUMBER | port).to_ne_bytes());
            filter.bytes(REPLY_FLAGS, &0_u32.to_ne_bytes());
        });
    };
    (header(GET, family), body)
}

/// Builds the request for the TCP entries without a reply.
///
/// Kernels before 5.15 ignore the status, so the caller must check each.
pub(super) fn list_unanswered(family: Family) -> (Header, impl FnOnce(&mut Encoder)) {
    let (header, tcp) = list(family, Protocol::Tcp, None);
    let body = |encoder: &mut Encoder| {
        tcp(encoder);
        encoder.be32(STATUS, 0);
        encoder.be32(STATUS_MASK, SEEN_REPLY);
    };
    (header, body)
}

impl Entry {
    /// Reads one message of a dump; None if it is not an entry of that protocol.
    pub(super) fn read(message: &Message<'_>, protocol: Protocol) -> Option<Self> {
        let attributes = message.attributes();
        let (mut sent, mut answered) = (None, None);
        let (mut is_answered, mut is_established) = (false, false);
        let mut name = Name::default();
        for attribute in attributes {
            match attribute.kind {
                TUPLE_ORIG => sent = Tuple::read(attribute.attributes(), protocol),
                TUPLE_REPLY => answered = Tuple::read(attribute.attributes(), protocol),
                STATUS => {
                    let status = attribute.be32().unwrap_or_default();
                    is_answered = status & SEEN_REPLY != 0;
                    is_established = status & ASSURED != 0;
                    continue;
                }
                ID | ZONE => {}
                _ => continue,
            }
            let nested = if attribute.nested { NESTED } else { 0 };
            // one tuple identifies the entry, so the reply tuple is left out
            if attribute.kind != TUPLE_REPLY {
                let value = attribute.value.to_vec();
                name.0.push((attribute.kind | nested, value));
            }
        }
        let (sent, answered) = (sent?, answered?);
        Some(Self {
            protocol,
            source: sent.source,
            dst: sent.destination,
            port: sent.destination_port,
            answered_by: answered.source,
            answering_port: answered.source_port,
            is_answered,
            is_established,
            name,
        })
    }

    /// Returns whether the entry sends packets to the pod of a mapping.
    pub(super) fn leads_to(&self, mapping: &Mapping) -> bool {
        self.answered_by == mapping.pod_ip && self.answering_port == mapping.container_port.get()
    }

    /// Returns whether another endpoint answers than the one that it was sent to.
    pub(super) fn is_translated(&self) -> bool {
        (self.answered_by, self.answering_port) != (self.dst, self.port)
    }

    /// Builds the request that deletes this entry and no other.
    pub(super) fn delete(&self, family: Family) -> (Header, impl FnOnce(&mut Encoder)) {
        let body = |encoder: &mut Encoder| {
            for (kind, value) in &self.name.0 {
                encoder.bytes(*kind, value);
            }
        };
        (header(DELETE, family), body)
    }
}

struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    source_port: u16,
    destination_port: u16,
}

impl Tuple {
    fn read(attributes: Attributes<'_>, protocol: Protocol) -> Option<Self> {
        let ip = attributes.clone().find(IP)?.attributes();
        let proto = attributes.find(PROTO)?.attributes();
        if proto.clone().find(NUMBER)?.value != [protocol.number()] {
            return None;
        }
        let address = |kind| address(ip.clone().find(kind)?.value);
        let port = |kind| {
            let value = proto.clone().find(kind)?.value;
            Some(u16::from_be_bytes(value.try_into().ok()?))
        };
        let addresses = ADDRESSES
            .into_iter()
            .find_map(|(source, destination)| Some((address(source)?, address(destination)?)));
        let (source, destination) = addresses?;
        Some(Self {
            source,
            destination,
            source_port: port(SOURCE_PORT)?,
            destination_port: port(DESTINATION_PORT)?,
        })
    }
}

fn header(kind: u16, family: Family) -> Header {
    Header {
        kind,
        family: family.number(),
        ..Header::default()
    }
}

#[cfg(test)]
mod tests;
