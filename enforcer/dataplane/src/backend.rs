//! The packet filters that can carry mappings, by name.

use std::fmt;

use super::flavour::Flavour;

/// A packet filter that can carry mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Chains of port ranges, through either kind of iptables.
    Iptables(Flavour),
    /// One table with maps.
    Nftables,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [
        Self::Iptables(Flavour::Nft),
        Self::Iptables(Flavour::Legacy),
        Self::Nftables,
    ];

    /// Name for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Iptables(flavour) => flavour.as_str(),
            Self::Nftables => "nftables",
        }
    }

    /// Returns whether the kernel announces changes of its rules.
    #[must_use]
    pub fn announces(self) -> bool {
        self != Self::Iptables(Flavour::Legacy)
    }
}

impl From<Flavour> for Backend {
    fn from(flavour: Flavour) -> Self {
        Self::Iptables(flavour)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
