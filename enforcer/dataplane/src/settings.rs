//! What an administrator may set.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use portmapping_shared::{HostPort, PortRange, PortSet};

use crate::family::Family;
use crate::host_addresses::AddressSelection;

/// Settings of the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The host ports that may be mapped.
    pub range: PortRange,
    /// Ports of the range that are never mapped.
    pub excluded: PortSet,
    /// Subnets of pods that share a bridge whose packets pass no rules (bridge-nf-call-iptables is
    /// 0). There, a pod reaches the host port of another pod only if the connection is masqueraded.
    pub neighbours: Vec<Subnet>,
    /// Whether every connection to a mapped port is masqueraded: where replies of pods leave the node
    /// past netfilter, a client gets none otherwise. The pods then see the node's address.
    pub masquerade: bool,
    /// Which addresses of the node become host addresses.
    pub selection: AddressSelection,
    /// The addresses at which mappings answer. Packets to all other addresses are not ours.
    pub host_addresses: BTreeSet<IpAddr>,
}

impl Settings {
    /// Returns settings with every port of the range, no neighbours and no host addresses.
    #[must_use]
    pub fn new(range: PortRange) -> Self {
        Self {
            range,
            excluded: PortSet::default(),
            neighbours: Vec::new(),
            masquerade: false,
            selection: AddressSelection::default(),
            host_addresses: BTreeSet::new(),
        }
    }
}

/// A network written as `10.244.1.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subnet {
    network: IpAddr,
    length: u8,
}

impl Subnet {
    /// Returns the network of an address; None if the prefix is longer than an address.
    #[must_use]
    pub fn new(ip: IpAddr, length: u8) -> Option<Self> {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        // the kernel stores the masked address, so reads return that
        (length <= longest).then(|| Self {
            network: masked(ip, length),
            length,
        })
    }

    /// Returns the network that has this address only.
    #[must_use]
    pub fn of_address(ip: IpAddr) -> Self {
        let length = if ip.is_ipv4() { 32 } else { 128 };
        Self {
            network: ip,
            length,
        }
    }

    pub(crate) fn family(&self) -> Family {
        Family::of(self.network)
    }

    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    /// Returns its first address.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Returns the network mask as an address.
    #[must_use]
    pub fn netmask(&self) -> IpAddr {
        let ones = if self.network.is_ipv4() {
            IpAddr::V4(u32::MAX.into())
        } else {
            IpAddr::V6(u128::MAX.into())
        };
        masked(ones, self.length)
    }

    /// Returns whether the address is in the network.
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
            Self::new(network.parse().ok()?, length.parse().ok()?)
        };
        parse().ok_or_else(|| InvalidSubnet(text.chars().take(60).collect()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

/// The error for text that is not a network.
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

/// Returns the ports of a range that are not excluded, as spans of first and last port.
pub(crate) fn spans(range: PortRange, excluded: &PortSet) -> Vec<(HostPort, HostPort)> {
    let mut spans: Vec<(HostPort, HostPort)> = Vec::new();
    for port in range.ports().filter(|port| !excluded.contains(*port)) {
        match spans.last_mut() {
            Some((_, last)) if last.get() + 1 == port.get() => *last = port,
            _ => spans.push((port, port)),
        }
    }
    spans
}

#[cfg(test)]
mod tests;
