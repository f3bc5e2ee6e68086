//! Removes everything of ours from the tables of one kind of iptables.

use crate::DataplaneError;
use crate::exec::Tools;

use super::commands::Commands;
use super::layout::{MANGLE, NAT};
use super::save::Saved;
use super::transaction::Transaction;
use crate::family::Family;
use crate::flavour::Flavour;

/// Removes our jumps and chains of one flavour, for both families. Continues after failures and
/// returns them.
pub(crate) fn uninstall_flavour(flavour: Flavour, tools: &Tools) -> Vec<DataplaneError> {
    let commands = |family| Commands::new(family, flavour, tools.clone());
    Family::ALL
        .into_iter()
        .filter_map(|family| clean(&commands(family)).err())
        .collect()
}

fn clean(commands: &Commands) -> Result<(), DataplaneError> {
    // reads all tables in use, because reading nat would create it if it does not exist
    let text = match commands.save_all() {
        Err(error) if error.is_unprintable() && commands.flavour == Flavour::Nft => {
            commands.save_own()?
        }
        text => text?,
    };
    [NAT, MANGLE]
        .into_iter()
        .try_for_each(|table| clean_table(commands, &text, table))
}

fn clean_table(commands: &Commands, text: &str, table: &str) -> Result<(), DataplaneError> {
    let saved = Saved::parse_table(text, table);
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
    commands.restore_in(table, &transaction)
}
