//! Converts mappings to elements of maps, and back.
//!
//! Keys and data are concatenations whose components are padded to 4 bytes each: protocol, port,
//! address. The pod's uid is the element's comment, in the form `nft list map` prints.

use std::net::IpAddr;

use portmapping_shared::contract::RULE_COMMENT_PREFIX;
use portmapping_shared::{ContainerPort, HostPort, Mapping, PodUid, Protocol};

use crate::family::{Family, address};
use crate::netlink::{Attribute, Encoder};

use super::expression::{DATA_VALUE, LIST_ELEM};
use super::sets::SetId;

/// `NFTA_SET_ELEM_KEY`, `_DATA`, `_FLAGS`, `_USERDATA`.
const KEY: u16 = 1;
const DATA: u16 = 2;
const FLAGS: u16 = 3;
const USERDATA: u16 = 6;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`.
const COMMENT: u8 = 0;

/// The key of an element of a map. A slot can hold one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) protocol: Protocol,
    pub(super) host_port: HostPort,
    pub(super) host_ip: Option<IpAddr>,
    pub(super) family: Family,
}

impl Slot {
    pub(super) fn of(mapping: &Mapping) -> Self {
        Self {
            protocol: mapping.protocol,
            host_port: mapping.host_port,
            host_ip: mapping.host_ip,
            family: Family::of(mapping.pod_ip),
        }
    }

    /// Returns the map that the slot is in.
    pub(super) fn set(&self) -> SetId {
        if self.host_ip.is_some() {
            SetId::Bound(self.family)
        } else {
            SetId::Ports(self.family)
        }
    }

    fn key(&self) -> Packed {
        let mut key = Packed::default();
        key.push(&[self.protocol.number()]);
        key.push(&self.host_port.get().to_be_bytes());
        if let Some(ip) = self.host_ip {
            key.push_ip(ip);
        }
        key
    }

    /// Returns the slot for a key of a map.
    pub(super) fn read(set: SetId, key: &[u8]) -> Option<Self> {
        let (SetId::Ports(family) | SetId::Bound(family)) = set else {
            return None;
        };
        let ([protocol, 0, 0, 0, high, low, 0, 0], ip) = key.split_first_chunk()? else {
            return None;
        };
        let host_ip = match set {
            SetId::Bound(_) => Some(read_ip(family, ip)?),
            _ => None,
        };
        Some(Self {
            protocol: read_protocol(*protocol)?,
            host_port: HostPort::new(u16::from_be_bytes([*high, *low]))?,
            host_ip,
            family,
        })
    }

    /// Returns the mapping from this slot to the endpoint in the data.
    pub(super) fn mapping(&self, data: &[u8], owner: PodUid) -> Option<Mapping> {
        let (ip, port) = data.split_at_checked(address_length(self.family))?;
        let [high, low, 0, 0] = port else {
            return None;
        };
        Some(Mapping {
            protocol: self.protocol,
            host_port: self.host_port,
            host_ip: self.host_ip,
            pod_ip: read_ip(self.family, ip)?,
            container_port: ContainerPort::new(u16::from_be_bytes([*high, *low]))?,
            owner,
        })
    }

    /// Writes the element with its key alone, for a deletion.
    pub(super) fn write_key(&self, encoder: &mut Encoder) {
        encoder.nest(LIST_ELEM, |encoder| {
            encoder.nest(KEY, |encoder| encoder.bytes(DATA_VALUE, self.key().bytes()));
        });
    }
}

/// Writes the element of a mapping.
pub(super) fn write_mapping(encoder: &mut Encoder, mapping: &Mapping) {
    let mut data = Packed::default();
    data.push_ip(mapping.pod_ip);
    data.push(&mapping.container_port.get().to_be_bytes());
    encoder.nest(LIST_ELEM, |encoder| {
        encoder.nest(KEY, |encoder| {
            encoder.bytes(DATA_VALUE, Slot::of(mapping).key().bytes());
        });
        encoder.nest(DATA, |encoder| encoder.bytes(DATA_VALUE, data.bytes()));
        write_comment(encoder, &mapping.owner);
    });
}

fn write_comment(encoder: &mut Encoder, owner: &PodUid) {
    let owner = owner.as_str().as_bytes();
    let length = RULE_COMMENT_PREFIX.len() + owner.len() + 1;
    // a uid has at most 63 letters, so the comment fits
    let mut userdata = [0; 128];
    userdata[0] = COMMENT;
    userdata[1] = u8::try_from(length).unwrap_or_default();
    let text = [RULE_COMMENT_PREFIX.as_bytes(), owner];
    let bytes = text.into_iter().flatten();
    for (place, byte) in userdata[2..].iter_mut().zip(bytes) {
        *place = *byte;
    }
    encoder.bytes(USERDATA, userdata.get(..length + 2).unwrap_or_default());
}

/// An element as the kernel lists it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listed<'a> {
    pub(super) key: &'a [u8],
    pub(super) data: &'a [u8],
    pub(super) userdata: &'a [u8],
    /// Whether it is not a normal element but, for example, the one for all other keys.
    pub(super) odd: bool,
}

impl<'a> Listed<'a> {
    /// Reads one attribute of a list of elements.
    pub(super) fn read(element: Attribute<'a>) -> Self {
        let mut listed = Self::default();
        for attribute in element.attributes() {
            let value = || {
                let value = attribute.attributes().find(DATA_VALUE);
                value.map_or(&[][..], |value| value.value)
            };
            match attribute.kind {
                KEY => listed.key = value(),
                DATA => listed.data = value(),
                USERDATA => listed.userdata = attribute.value,
                FLAGS => listed.odd |= attribute.be32() != Some(0),
                _ => {}
            }
        }
        listed.odd |= listed.key.is_empty();
        listed
    }

    /// Returns the pod that owns the element; None if the element is not ours.
    pub(super) fn owner(&self) -> Option<PodUid> {
        let mut rest = self.userdata;
        while let [kind, length, after @ ..] = rest {
            let (value, next) = after.split_at_checked(usize::from(*length))?;
            if *kind == COMMENT {
                let comment = std::str::from_utf8(value).ok()?;
                let comment = comment.strip_suffix('\0').unwrap_or(comment);
                return comment.strip_prefix(RULE_COMMENT_PREFIX)?.parse().ok();
            }
            rest = next;
        }
        None
    }
}

/// A foreign element, kept so that it can be restored unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) data: Vec<u8>,
    pub(super) userdata: Vec<u8>,
}

impl Foreign {
    pub(super) fn new(listed: &Listed<'_>) -> Self {
        Self {
            data: listed.data.to_vec(),
            userdata: listed.userdata.to_vec(),
        }
    }

    /// Writes the whole element, or its key alone for a deletion.
    pub(super) fn write(encoder: &mut Encoder, key: &[u8], whole: Option<&Self>) {
        encoder.nest(LIST_ELEM, |encoder| {
            encoder.nest(KEY, |encoder| encoder.bytes(DATA_VALUE, key));
            if let Some(Self { data, userdata }) = whole {
                if !data.is_empty() {
                    encoder.nest(DATA, |encoder| encoder.bytes(DATA_VALUE, data));
                }
                if !userdata.is_empty() {
                    encoder.bytes(USERDATA, userdata);
                }
            }
        });
    }
}

/// A concatenation, each component padded to 4 bytes.
#[derive(Default)]
struct Packed {
    bytes: [u8; 32],
    length: usize,
}

impl Packed {
    fn push(&mut self, component: &[u8]) {
        let end = self.length + component.len();
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(component);
        }
        self.length = end.next_multiple_of(4);
    }

    fn push_ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.push(&ip.octets()),
            IpAddr::V6(ip) => self.push(&ip.octets()),
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Returns the full key of a slot, to compare it with raw keys.
pub(super) fn key_bytes(slot: &Slot) -> Vec<u8> {
    slot.key().bytes().to_vec()
}

fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

pub(super) fn read_ip(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    address(bytes).filter(|ip| Family::of(*ip) == family)
}

fn read_protocol(number: u8) -> Option<Protocol> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.number() == number)
}

#[cfg(test)]
mod tests;
