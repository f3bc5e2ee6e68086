//! What the kernel and iptables of this node can do, by rehearsals that change nothing.
//!
//! `--test` of iptables-nft sends the kernel all of a transaction but its end; that of
//! iptables-legacy asks the kernel for each match and target by name and revision.

use crate::DataplaneError;

use super::commands::Commands;
use super::layout::comparison;

/// Whether a rule can compare a packet's addresses (`xt_bpf`). An error: not even other rules can
/// be made now, so nothing is known.
pub(super) fn compares(commands: &Commands) -> Result<bool, DataplaneError> {
    if rehearse(commands, &comparison(commands.family)).is_ok() {
        return Ok(true);
    }
    rehearse(commands, "-j MASQUERADE").map(|()| false)
}

fn rehearse(commands: &Commands, rule: &str) -> Result<(), DataplaneError> {
    commands.rehearse(&format!(
        "*nat\n:PORTMAPPING-PROBE - [0:0]\n-A PORTMAPPING-PROBE {rule}\nCOMMIT\n"
    ))
}
