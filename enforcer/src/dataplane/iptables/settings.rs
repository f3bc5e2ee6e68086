//! What a person may decide about the rules.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use portmapping_shared::PortRange;

/// Bits of the packet mark that belong to others: CNI portmap, kube-proxy (masquerade, drop).
const TAKEN_BITS: [u32; 3] = [0x2000, 0x4000, 0x8000];

/// How the rules are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The host ports the range tree is built for.
    pub range: PortRange,
    /// The bit that marks a connection for masquerading between two chains of ours.
    pub mark: MarkBit,
    /// Subnets of pods on the node's own bridge. Name them only where packets between two ports of
    /// a bridge bypass iptables (bridge-nf-call-iptables is 0): there a pod reaches its neighbour's
    /// host port only if it is masqueraded.
    pub neighbours: Vec<Subnet>,
}

impl Settings {
    /// The usual mark, and no neighbours.
    #[must_use]
    pub fn new(range: PortRange) -> Self {
        Self {
            range,
            mark: MarkBit::default(),
            neighbours: Vec::new(),
        }
    }
}

/// One bit of the packet mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkBit(u32);

impl Default for MarkBit {
    fn default() -> Self {
        Self(0x1000)
    }
}

impl TryFrom<u32> for MarkBit {
    type Error = InvalidMark;

    fn try_from(bit: u32) -> Result<Self, InvalidMark> {
        if bit.is_power_of_two() && !TAKEN_BITS.contains(&bit) {
            Ok(Self(bit))
        } else {
            Err(InvalidMark(format!("{bit:#x}")))
        }
    }
}

impl FromStr for MarkBit {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Self, InvalidMark> {
        let digits = text.trim();
        let bit = match digits.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        bit.ok()
            .and_then(|bit| Self::try_from(bit).ok())
            .ok_or_else(|| InvalidMark(text.chars().take(20).collect()))
    }
}

impl fmt::Display for MarkBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A mark that is no single bit, or somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no mark bit of ours: write a single bit such as 0x1000, but none of 0x2000 (CNI portmap), 0x4000, 0x8000 (kube-proxy)"
)]
pub struct InvalidMark(String);

/// A network written as `10.244.1.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: IpAddr,
    length: u8,
}

impl Subnet {
    /// Whether the address lies in the network.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.network.is_ipv4()
            && masked(ip, self.length) == masked(self.network, self.length)
    }
}

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let parse = || {
            let (network, length) = text.trim().split_once('/')?;
            let network: IpAddr = network.parse().ok()?;
            let length: u8 = length.parse().ok()?;
            let longest = if network.is_ipv4() { 32 } else { 128 };
            // the kernel stores the masked form, and that is what is read back
            (length <= longest).then(|| Self {
                network: masked(network, length),
                length,
            })
        };
        parse().ok_or_else(|| InvalidSubnet(text.chars().take(60).collect()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

/// Text that names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no subnet: write 10.244.1.0/24 or fd00:10:244:1::/64")]
pub struct InvalidSubnet(String);

fn masked(ip: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or(0);
            IpAddr::V4((ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or(0);
            IpAddr::V6((ip.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests;
