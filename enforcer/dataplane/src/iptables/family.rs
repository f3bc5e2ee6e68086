//! Address families, the two kinds of iptables, and the names of the programs for each.

use std::fmt;
use std::net::IpAddr;

/// An address family: a table of its own in the kernel, and a transaction of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The prefix length of a single address.
    pub(super) fn host_length(self) -> &'static str {
        match self {
            Self::V4 => "32",
            Self::V6 => "128",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The two kinds of iptables, with tables of their own in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flavour {
    /// iptables over `nf_tables`.
    Nft,
    /// The original, with tables of its own; needs `NET_RAW` besides `NET_ADMIN`.
    Legacy,
}

impl Flavour {
    /// Both, the younger first.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }

    /// Name for logs, metrics and flags.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The programs of one family and flavour, by the names that need no `update-alternatives`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    /// Changes one rule.
    pub(crate) iptables: &'static str,
    /// Changes many at once.
    pub(crate) restore: &'static str,
    /// Prints them.
    pub(crate) save: &'static str,
}

impl Programs {
    pub(crate) fn of(family: Family, flavour: Flavour) -> Self {
        match (family, flavour) {
            (Family::V4, Flavour::Nft) => Self {
                iptables: "iptables-nft",
                restore: "iptables-nft-restore",
                save: "iptables-nft-save",
            },
            (Family::V4, Flavour::Legacy) => Self {
                iptables: "iptables-legacy",
                restore: "iptables-legacy-restore",
                save: "iptables-legacy-save",
            },
            (Family::V6, Flavour::Nft) => Self {
                iptables: "ip6tables-nft",
                restore: "ip6tables-nft-restore",
                save: "ip6tables-nft-save",
            },
            (Family::V6, Flavour::Legacy) => Self {
                iptables: "ip6tables-legacy",
                restore: "ip6tables-legacy-restore",
                save: "ip6tables-legacy-save",
            },
        }
    }
}
