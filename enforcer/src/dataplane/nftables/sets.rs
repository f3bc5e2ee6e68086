//! The sets and maps of the table.

use crate::dataplane::iptables::Family;

/// `NFT_SET_MAP`.
const MAP: u32 = 0x8;
/// Datatypes as nft numbers them; of a concatenation, the last is lowest.
const IPV4: u32 = 7;
const IPV6: u32 = 8;
const PROTO: u32 = 12;
const SERVICE: u32 = 13;

const fn joined(left: u32, right: u32) -> u32 {
    left << 6 | right
}

/// Which set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetId {
    /// Protocol and port to pod, at every address of the node.
    Ports(Family),
    /// Protocol, port and node address to pod.
    Bound(Family),
    /// Pod addresses, twice: sender and destination.
    Hairpin(Family),
    /// Ports of the range that are others'.
    Excluded,
}

/// A set as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetShape {
    pub(super) id: SetId,
    pub(super) name: &'static str,
    /// Datatype and length in bytes of a key, and of what it maps to.
    pub(super) key: (u32, u32),
    pub(super) data: Option<(u32, u32)>,
}

impl SetId {
    /// What the set looks like.
    pub(super) fn shape(self) -> SetShape {
        let (name, key, data) = match self {
            Self::Ports(Family::V4) => ("ports4", PORT, Some(TARGET4)),
            Self::Ports(Family::V6) => ("ports6", PORT, Some(TARGET6)),
            Self::Bound(Family::V4) => ("bound4", (joined(PORT.0, IPV4), 12), Some(TARGET4)),
            Self::Bound(Family::V6) => ("bound6", (joined(PORT.0, IPV6), 24), Some(TARGET6)),
            Self::Hairpin(Family::V4) => ("hairpin4", (joined(IPV4, IPV4), 8), None),
            Self::Hairpin(Family::V6) => ("hairpin6", (joined(IPV6, IPV6), 32), None),
            Self::Excluded => ("excluded", (SERVICE, 2), None),
        };
        SetShape {
            id: self,
            name,
            key,
            data,
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
    /// Its flags: maps are a kind of set.
    pub(super) fn flags(&self) -> u32 {
        self.data.map_or(0, |_| MAP)
    }
}
