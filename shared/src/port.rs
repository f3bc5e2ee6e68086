//! Port numbers, protocols, ranges and sets of them.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transport protocol, spelled as core/v1 `ContainerPort.protocol` spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// RFC 9293.
    #[serde(rename = "TCP")]
    Tcp,
    /// RFC 768.
    #[serde(rename = "UDP")]
    Udp,
    /// RFC 9260.
    #[serde(rename = "SCTP")]
    Sctp,
}

impl Protocol {
    /// All protocols, in the order of the API's documentation.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Returns the spelling of the Kubernetes API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// Returns the spelling of iptables, nft and CNI.
    #[must_use]
    pub fn as_kernel_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Returns the number that IANA assigned.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.as_str() == text)
            .ok_or_else(|| UnknownProtocol(text.chars().take(20).collect()))
    }
}

/// Text that is none of the three protocols. Lower case is refused, as by the API server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol {0:?} is none of TCP, UDP, SCTP")]
pub struct UnknownProtocol(String);

macro_rules! port_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(NonZeroU16);

        impl $name {
            /// Returns None for 0, which is not a port.
            #[must_use]
            pub const fn new(number: u16) -> Option<Self> {
                match NonZeroU16::new(number) {
                    Some(number) => Some(Self(number)),
                    None => None,
                }
            }

            /// Returns the number, 1-65535.
            #[must_use]
            pub const fn get(self) -> u16 {
                self.0.get()
            }
        }

        impl TryFrom<i64> for $name {
            type Error = NoPort;

            fn try_from(number: i64) -> Result<Self, NoPort> {
                u16::try_from(number).ok().and_then(Self::new).ok_or(NoPort(number))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

port_number! {
    /// Port on the node.
    HostPort
}
port_number! {
    /// Port in the pod.
    ContainerPort
}

/// A host port of one protocol: what a pod leases and the keeper holds.
pub type PortKey = (Protocol, HostPort);

/// A number outside 1-65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a port: ports are 1-65535")]
pub struct NoPort(pub i64);

/// An inclusive range of host ports, written `20000-29999` or `20000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: HostPort,
    last: HostPort,
}

impl PortRange {
    /// Returns None if `last` is less than `first`.
    #[must_use]
    pub fn new(first: HostPort, last: HostPort) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Returns the lowest port.
    #[must_use]
    pub fn first(self) -> HostPort {
        self.first
    }

    /// Returns the highest port.
    #[must_use]
    pub fn last(self) -> HostPort {
        self.last
    }

    /// Returns the number of ports; at least one.
    #[must_use]
    pub fn size(self) -> usize {
        usize::from(self.last.get() - self.first.get()) + 1
    }

    /// Returns whether the range contains the port.
    #[must_use]
    pub fn contains(self, port: HostPort) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Returns every port in ascending order.
    pub fn ports(self) -> impl Iterator<Item = HostPort> {
        (self.first.get()..=self.last.get()).filter_map(HostPort::new)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return self.first.fmt(f);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let text = text.trim();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let bound = |part: &str| {
            // u16::from_str would accept a leading +
            let digits = part.trim();
            let number = digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse().ok());
            number.flatten().and_then(HostPort::new)
        };
        match (bound(first), bound(last)) {
            (Some(first), Some(last)) => Self::new(first, last),
            _ => None,
        }
        .ok_or_else(|| InvalidRange(text.chars().take(40).collect()))
    }
}

/// Text that is not a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port range: write 20000-29999, or 20000 for a single port")]
pub struct InvalidRange(String);

/// Any set of host ports, one bit each: 8 KiB, membership in constant time.
#[derive(Clone, PartialEq, Eq)]
pub struct PortSet {
    bits: Box<[u64; 1024]>,
    len: usize,
}

impl Default for PortSet {
    fn default() -> Self {
        Self {
            bits: Box::new([0; 1024]),
            len: 0,
        }
    }
}

impl PortSet {
    /// Returns the number of ports.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the set contains the port.
    #[must_use]
    pub fn contains(&self, port: HostPort) -> bool {
        let (word, bit) = Self::position(port);
        self.bits[word] & bit != 0
    }

    /// Adds a port; false if the set contained it.
    pub fn insert(&mut self, port: HostPort) -> bool {
        let (word, bit) = Self::position(port);
        let fresh = self.bits[word] & bit == 0;
        self.bits[word] |= bit;
        self.len += usize::from(fresh);
        fresh
    }

    /// Adds every port of a range.
    pub fn insert_range(&mut self, range: PortRange) {
        for port in range.ports() {
            self.insert(port);
        }
    }

    /// Returns the ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = HostPort> + '_ {
        (1..=u16::MAX)
            .filter_map(HostPort::new)
            .filter(|port| self.contains(*port))
    }

    fn position(port: HostPort) -> (usize, u64) {
        (usize::from(port.get() >> 6), 1 << (port.get() & 63))
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(HostPort::get))
            .finish()
    }
}

impl FromIterator<HostPort> for PortSet {
    fn from_iter<I: IntoIterator<Item = HostPort>>(ports: I) -> Self {
        let mut set = Self::default();
        for port in ports {
            set.insert(port);
        }
        set
    }
}

#[cfg(test)]
mod tests;
