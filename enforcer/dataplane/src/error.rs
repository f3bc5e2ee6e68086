//! Errors of the dataplane drivers.

use std::fmt;

use portmapping_shared::Mapping;
use rustix::io::Errno;

use super::exec::ExecError;
use super::flavour::Flavour;
use super::netlink::NetlinkError;

/// A failure of a dataplane driver; its text says what was tried and what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A program could not be started, or did not end in time.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A program exited with an error.
    #[error("{program} failed ({status}): {stderr}{}{}", Suffix(": line was ", .line), Suffix("; ", .hint))]
    Refused {
        /// Name of the program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// What it wrote to its standard error.
        stderr: String,
        /// The line of its input that its error message names.
        line: Option<String>,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// A program cannot print the rules of a table, because a rule of another program is among them.
    #[error("{program} cannot print the rules of this node: {message}{}", Suffix("; ", .hint))]
    Unprintable {
        /// Name of the program.
        program: &'static str,
        /// Its error message, and the beginning of the rule.
        message: String,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// A jump from a built-in chain could not be made or removed.
    #[error("{program} cannot change the jump from {chain} to our chain: {message}")]
    Jump {
        /// Name of the program.
        program: &'static str,
        /// The built-in chain.
        chain: &'static str,
        /// Its error message.
        message: String,
    },
    /// A mapping to an IPv6 pod on a node that cannot translate IPv6 addresses.
    #[error("mapping {mapping} needs IPv6 rules, which cannot be made here: {reason}")]
    NoIpv6 {
        /// The mapping.
        mapping: Box<Mapping>,
        /// Why IPv6 rules cannot be made, as found at the start.
        reason: String,
    },
    /// Host address and pod address of a mapping belong to different families.
    #[error("mapping {mapping}: its host IP is not of the address family of its pod IP")]
    MixedFamilies {
        /// The mapping.
        mapping: Box<Mapping>,
    },
    /// No kind of iptables can be run.
    #[error("neither iptables-nft nor iptables-legacy works on this node: {nft}; {legacy}")]
    NoIptables {
        /// The error of iptables-nft.
        nft: String,
        /// The error of iptables-legacy.
        legacy: String,
    },
    /// One kind of iptables cannot be read, and nothing shows that the node uses the other one.
    #[error("the rules of {flavour} cannot be read: {message}; or use --backend=nftables")]
    IptablesUnreadable {
        /// The kind.
        flavour: Flavour,
        /// Its error.
        message: String,
    },
    /// Both kinds of iptables have rules. A wrong guess would put our rules behind those of others.
    #[error(
        "both iptables-nft ({nft}) and iptables-legacy ({legacy}) carry rules on this node; say which one with --iptables=nft or --iptables=legacy, or remove the rules of one of them"
    )]
    BothFlavours {
        /// What iptables-nft has.
        nft: String,
        /// What iptables-legacy has.
        legacy: String,
    },
    /// The kernel has no nftables, or none that can translate addresses.
    #[error("nftables cannot be used on this node: {}", no_nftables(source))]
    NoNftables {
        /// The error of the kernel.
        source: NetlinkError,
    },
    /// Communication with the kernel failed, or the kernel refused a transaction.
    #[error("the nftables table could not be read or changed")]
    Netlink(#[from] NetlinkError),
    /// The kernel refused one element.
    #[error("the kernel refuses mapping {mapping} in its nftables map")]
    ElementRefused {
        /// The mapping.
        mapping: Box<Mapping>,
        /// The error of the kernel.
        source: NetlinkError,
    },
    /// An element that is not ours has the key of a mapping.
    #[error(
        "mapping {mapping}: another program's element is in its place in table inet portmapping; find it with `nft list table inet portmapping` (it has no comment portmapping:UID) and delete it"
    )]
    ForeignElement {
        /// The mapping.
        mapping: Box<Mapping>,
    },
    /// Several steps failed; each was tried.
    #[error("{} failures: {}", .0.len(), Joined(.0))]
    Several(Vec<DataplaneError>),
}

fn no_nftables(source: &NetlinkError) -> &'static str {
    if denied(source) {
        "the node denies it (NotPermitted): the container lacks the capability NET_ADMIN, or a security module of the node, as managed nodes have, forbids the call; ask who runs the nodes"
    } else {
        "it needs nf_tables with nat for family inet (Linux 5.2 or later) and the capability NET_ADMIN; use --backend=iptables instead"
    }
}

fn denied(source: &NetlinkError) -> bool {
    source.is_refusal(Errno::PERM) || source.is_refusal(Errno::ACCESS)
}

impl DataplaneError {
    /// Returns whether iptables cannot print a rule of another program. This stays so until the rule
    /// is gone.
    #[must_use]
    pub fn is_unprintable(&self) -> bool {
        match self {
            Self::Unprintable { .. } => true,
            Self::Several(errors) => errors.iter().any(Self::is_unprintable),
            _ => false,
        }
    }

    /// Returns whether this program lacks a right, on a node that may deny it in spite of its
    /// capabilities.
    #[must_use]
    pub fn is_not_permitted(&self) -> bool {
        let says_denied = |text: &str| {
            text.contains("Operation not permitted") || text.contains("Permission denied")
        };
        match self {
            Self::Refused { stderr, .. } => says_denied(stderr),
            Self::Jump { message, .. } => says_denied(message),
            Self::Netlink(source)
            | Self::ElementRefused { source, .. }
            | Self::NoNftables { source } => denied(source),
            Self::Several(errors) => errors.iter().any(Self::is_not_permitted),
            _ => false,
        }
    }

    /// Returns whether the kernel or iptables may lack a match or target of our rules. A lock of another
    /// program, or no memory, is another error.
    pub(super) fn is_missing_match(&self) -> bool {
        const TEXTS: [&str; 3] = [
            "No chain/target/match",
            "No such file or directory",
            "Couldn't load match",
        ];
        match self {
            Self::Refused { stderr, .. } => TEXTS.iter().any(|text| stderr.contains(text)),
            _ => false,
        }
    }

    /// Returns whether a kind of iptables is not installed, or the kernel lacks its part.
    pub(super) fn is_missing_iptables(&self) -> bool {
        match self {
            Self::Exec(ExecError::Missing { .. }) => true,
            Self::Refused { stderr, .. } => stderr.contains("Failed to initialize nft"),
            _ => false,
        }
    }

    /// Returns whether a program did not run to its end, for a reason that may be gone at the next run.
    pub(super) fn is_passing(&self) -> bool {
        let full = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
        match self {
            Self::Exec(ExecError::Deadline { .. }) => true,
            Self::Exec(ExecError::Io { source, .. }) => {
                Errno::from_io_error(source).is_some_and(|errno| full.contains(&errno))
            }
            Self::Refused { status, .. } => status.starts_with("signal"),
            _ => false,
        }
    }

    /// Returns one error for all of them; Ok if there are none.
    pub(super) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }
}

struct Suffix<'a, T>(&'static str, &'a Option<T>);

impl<T: fmt::Display> fmt::Display for Suffix<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1
            .as_ref()
            .map_or(Ok(()), |text| write!(f, "{}{text}", self.0))
    }
}

struct Joined<'a>(&'a [DataplaneError]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::RefusedMessage;

    #[test]
    fn a_node_that_denies_nftables_is_not_advised_to_use_iptables() {
        let refusal = |errno| {
            NetlinkError::Refused(vec![RefusedMessage {
                message: 0,
                errno,
                offset: None,
                text: None,
            }])
        };
        let text = |errno| {
            let source = refusal(errno);
            DataplaneError::NoNftables { source }.to_string()
        };
        assert!(text(Errno::PERM).contains("NotPermitted"));
        assert!(!text(Errno::PERM).contains("--backend=iptables"));
        assert!(text(Errno::OPNOTSUPP).contains("--backend=iptables"));
    }
}
