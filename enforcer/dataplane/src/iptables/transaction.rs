//! The input of one `iptables-restore --noflush`, which applies all of it or nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Changes to one table. Chains that are not named stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transaction {
    /// Chains of ours to be made, or emptied and filled again.
    pub(super) chains: BTreeMap<String, Vec<String>>,
    /// Rules to be appended to chains of ours that keep their other rules: chain and rule.
    pub(super) appended: Vec<(String, String)>,
    /// Chains of ours to be removed.
    pub(super) obsolete: Vec<String>,
    /// Rules to be deleted from chains that keep their other rules: chain and rule.
    pub(super) deleted: Vec<(String, String)>,
    /// Rules to be put first into built-in chains: chain and rule.
    pub(super) inserted: Vec<(String, String)>,
}

impl Transaction {
    /// Returns whether it would change nothing.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the text for table nat; None if there is nothing to do.
    #[cfg(test)]
    pub(super) fn text(&self) -> Option<String> {
        self.text_for(super::layout::NAT)
    }

    /// Returns the text for a table; None if there is nothing to do.
    pub(super) fn text_for(&self, table: &str) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut text = format!("*{table}\n");
        let mut line = |parts: &[&str]| {
            let _ = writeln!(text, "{}", parts.join(" "));
        };
        // declaring a chain empties it, so that jumps between obsolete chains are gone before -X
        for chain in self.chains.keys().chain(&self.obsolete) {
            line(&[&format!(":{chain}"), "-", "[0:0]"]);
        }
        for (chain, rule) in &self.deleted {
            line(&["-D", chain, rule]);
        }
        for (chain, rule) in &self.inserted {
            line(&["-I", chain, "1", rule]);
        }
        for (chain, rules) in &self.chains {
            for rule in rules {
                line(&["-A", chain, rule]);
            }
        }
        for (chain, rule) in &self.appended {
            line(&["-A", chain, rule]);
        }
        for chain in &self.obsolete {
            line(&["-X", chain]);
        }
        line(&["COMMIT"]);
        Some(text)
    }
}

#[cfg(test)]
mod tests;
