//! Removes everything of ours from the node, for every backend.

use super::DataplaneError;
use super::exec::{ExecError, Tools};
use super::flavour::Flavour;
use super::iptables;
use super::{forward, nftables};

/// Removes everything of ours, for every backend; continues after failures.
pub fn uninstall(tools: &Tools) -> Result<(), DataplaneError> {
    let table = nftables::uninstall();
    let chains = match uninstall_iptables(tools) {
        Err(error) if error.is_missing_programs() && !nftables::may_have_iptables_chains() => {
            tracing::debug!(%error, "no iptables, and no chains of ours in the kernel");
            Ok(())
        }
        chains => chains,
    };
    DataplaneError::collect(table.err().into_iter().chain(chains.err()).collect())
}

/// Removes our jumps and chains, of both families and both flavours; continues after failures.
///
/// A kind that is not installed, or that the kernel lacks, has nothing of ours. If this holds for
/// both kinds, their errors are returned.
fn uninstall_iptables(tools: &Tools) -> Result<(), DataplaneError> {
    let mut errors = forward::uninstall(tools);
    let mut missing = Vec::new();
    let nf_tables = nftables::is_in_kernel();
    for flavour in Flavour::ALL {
        for error in iptables::uninstall_flavour(flavour, tools) {
            match error {
                DataplaneError::Exec(ExecError::Missing { .. }) => missing.push((flavour, error)),
                _ if flavour == Flavour::Nft && !nf_tables => missing.push((flavour, error)),
                _ => errors.push(error),
            }
        }
    }
    if Flavour::ALL
        .iter()
        .all(|flavour| missing.iter().any(|(missing, _)| missing == flavour))
    {
        errors.extend(missing.into_iter().map(|(_, error)| error));
    }
    DataplaneError::collect(errors)
}

impl DataplaneError {
    /// Returns whether missing programs are the only failure.
    fn is_missing_programs(&self) -> bool {
        match self {
            Self::Exec(ExecError::Missing { .. }) => true,
            Self::Several(errors) => errors.iter().all(Self::is_missing_programs),
            _ => false,
        }
    }
}
