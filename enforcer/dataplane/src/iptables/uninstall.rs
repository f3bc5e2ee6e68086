//! Takes everything of ours out of the tables, whichever kind of iptables put it there.

use crate::DataplaneError;
use crate::exec::{ExecError, Tools};
use crate::{forward, nftables};

use super::commands::Commands;
use super::family::{Family, Flavour};
use super::save::Saved;
use super::transaction::Transaction;

/// Removes our jumps and chains, of both families and both flavours, going on past failures.
///
/// A flavour that is not installed has nothing of ours, unless neither is; nor has one that the
/// kernel lacks.
pub fn uninstall(tools: &Tools) -> Result<(), DataplaneError> {
    let mut errors = forward::uninstall(tools);
    let mut missing = Vec::new();
    let nf_tables = nftables::is_in_kernel();
    for flavour in Flavour::ALL {
        for error in uninstall_flavour(flavour, tools) {
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

/// The same for one flavour; what went wrong.
pub(crate) fn uninstall_flavour(flavour: Flavour, tools: &Tools) -> Vec<DataplaneError> {
    let commands = |family| Commands::new(family, flavour, tools.clone());
    Family::ALL
        .into_iter()
        .filter_map(|family| clean(&commands(family)).err())
        .collect()
}

/// Whether one flavour has anything of ours. One that does not work is taken to have nothing: it
/// was not this program's choice then.
pub(crate) fn has_traces(flavour: Flavour, tools: &Tools) -> bool {
    Family::ALL.into_iter().any(|family| {
        let text = Commands::new(family, flavour, tools.clone()).save_all();
        text.is_ok_and(|text| !Saved::parse(&text).is_empty())
    })
}

fn clean(commands: &Commands) -> Result<(), DataplaneError> {
    // all tables in use: asking for nat would make one where there is none
    let text = commands.save_all()?;
    let saved = Saved::parse(&text);
    let deleted = saved.references.iter();
    let transaction = Transaction {
        obsolete: saved
            .chains
            .keys()
            .map(|chain| (*chain).to_owned())
            .collect(),
        deleted: deleted
            .map(|found| (found.chain.to_owned(), found.rule.to_owned()))
            .collect(),
        ..Transaction::default()
    };
    commands.restore(&transaction, None)
}
