//! The two kinds of iptables, and the names of the programs for each.

use std::fmt;

use crate::family::Family;

/// The two kinds of iptables, with tables of their own in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flavour {
    /// iptables over `nf_tables`.
    Nft,
    /// The original, with tables of its own; needs `NET_RAW` in addition to `NET_ADMIN`.
    Legacy,
}

impl Flavour {
    /// Both, the newer first.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

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

/// The programs of one family and flavour, by names that do not depend on `update-alternatives`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Programs {
    /// Changes one rule.
    pub(crate) iptables: &'static str,
    /// Changes many rules at once.
    pub(crate) restore: &'static str,
    /// Prints the rules.
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
