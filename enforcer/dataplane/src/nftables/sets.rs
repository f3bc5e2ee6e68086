//! The sets and maps of the table.

use crate::family::Family;

/// `NFT_SET_MAP`.
const MAP: u32 = 0x8;
/// Datatypes as nft numbers them. In a concatenation, the last type has the lowest bits.
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const INTEGER: u32 = 4;
const PROTO: u32 = 12;
const SERVICE: u32 = 13;

const fn joined(left: u32, right: u32) -> u32 {
    left << 6 | right
}

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetId {
    /// Protocol and port to pod, at every host address.
    Ports(Family),
    /// Protocol, port and host address to pod.
    Bound(Family),
    /// The node's addresses at which mappings answer.
    Hosts(Family),
    /// Ports of the range that are never mapped.
    Excluded,
    /// Every pair of equal bytes, to compare addresses.
    Same,
}

/// A set as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetShape {
    pub(super) id: SetId,
    pub(super) name: &'static str,
    /// Datatype and length in bytes of a key, and of what it maps to.
    pub(super) key: (u32, u32),
    pub(super) data: Option<(u32, u32)>,
    /// How many elements the set has, if that never changes.
    pub(super) size: Option<u32>,
}

impl SetId {
    /// Returns the set as it should be.
    pub(super) fn shape(self) -> SetShape {
        let (name, key, data) = match self {
            Self::Ports(Family::V4) => ("ports4", PORT, Some(TARGET4)),
            Self::Ports(Family::V6) => ("ports6", PORT, Some(TARGET6)),
            Self::Bound(Family::V4) => ("bound4", (joined(PORT.0, IPV4), 12), Some(TARGET4)),
            Self::Bound(Family::V6) => ("bound6", (joined(PORT.0, IPV6), 24), Some(TARGET6)),
            Self::Hosts(Family::V4) => ("hosts4", (IPV4, 4), None),
            Self::Hosts(Family::V6) => ("hosts6", (IPV6, 16), None),
            Self::Excluded => ("excluded", (SERVICE, 2), None),
            Self::Same => ("same", (joined(INTEGER, INTEGER), 8), None),
        };
        SetShape {
            id: self,
            name,
            key,
            data,
            size: (self == Self::Same).then_some(1 << u8::BITS),
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.shape().name
    }
}

const PORT: (u32, u32) = (joined(PROTO, SERVICE), 8);
const TARGET4: (u32, u32) = (joined(IPV4, SERVICE), 8);
const TARGET6: (u32, u32) = (joined(IPV6, SERVICE), 20);

impl SetShape {
    /// Returns its flags; a map is a kind of set.
    pub(super) fn flags(&self) -> u32 {
        self.data.map_or(0, |_| MAP)
    }

    /// Returns data that nft needs and the kernel ignores. Without it, nft lists the table but
    /// cannot load its own listing.
    pub(super) fn description(&self) -> Option<Vec<u8>> {
        (self.id == SetId::Same).then(header_bytes)
    }
}

/// Returns `typeof @nh,120,8 . @nh,152,8` in nft's encoding (`NFTNL_UDATA_SET_KEY_TYPEOF`).
fn header_bytes() -> Vec<u8> {
    const KEY_TYPEOF: u8 = 3;
    const PAYLOAD: u32 = 7;
    const CONCATENATION: u32 = 13;
    const NETWORK_HEADER: u32 = 2;
    let number = |kind, number: u32| entry(kind, &number.to_ne_bytes());
    let byte_at = |bit| {
        let place = [
            number(0, 0),
            number(1, INTEGER),
            number(2, NETWORK_HEADER),
            number(3, bit),
            number(4, 8),
        ];
        [number(0, PAYLOAD), entry(1, &place.concat())].concat()
    };
    let both = [entry(0, &byte_at(120)), entry(1, &byte_at(152))];
    let key = [number(0, CONCATENATION), entry(1, &both.concat())];
    entry(KEY_TYPEOF, &key.concat())
}

/// Returns a value in nft's encoding: kind and length have one byte each.
fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or_default();
    [&[kind, length], value].concat()
}
