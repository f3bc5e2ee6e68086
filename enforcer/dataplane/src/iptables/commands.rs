//! Runs iptables-save and iptables-restore, and explains their errors.

use crate::DataplaneError;
use crate::exec::{Finished, Tools};

use super::flavour::{Flavour, Programs};
use super::transaction::Transaction;
use super::{invalid, jumps};
use crate::family::Family;

/// Seconds to wait for another iptables that holds the lock; legacy only, nft has none.
pub(super) const LOCK_WAIT_SECONDS: &str = "5";

/// The programs of one family and flavour, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Commands {
    pub(crate) family: Family,
    pub(crate) flavour: Flavour,
    pub(super) tools: Tools,
}

impl Commands {
    pub(crate) fn new(family: Family, flavour: Flavour, tools: Tools) -> Self {
        Self {
            family,
            flavour,
            tools,
        }
    }

    pub(super) fn programs(&self) -> Programs {
        Programs::of(self.family, self.flavour)
    }

    /// Returns table nat as text; empty if the table is not in use.
    pub(super) fn save_nat(&self) -> Result<String, DataplaneError> {
        // iptables-legacy creates a table when it reads it; a node without IPv6 rules must not get
        // one
        if self.family == Family::V6 && !self.is_in_use(jumps::TABLE) {
            return self.save(&[]).map(|_| String::new());
        }
        self.save(&["-t", jumps::TABLE])
    }

    /// Returns table mangle as text; empty if the table is not in use.
    pub(super) fn save_mangle(&self) -> Result<String, DataplaneError> {
        if !self.is_in_use(invalid::TABLE) {
            return Ok(String::new());
        }
        self.save(&["-t", invalid::TABLE])
    }

    /// Returns table filter as text; empty if the table is not in use.
    pub(crate) fn save_filter(&self) -> Result<String, DataplaneError> {
        if !self.is_in_use("filter") {
            return Ok(String::new());
        }
        self.save(&["-t", "filter"])
    }

    /// Returns all tables in use as text.
    pub(crate) fn save_all(&self) -> Result<String, DataplaneError> {
        self.save(&[])
    }

    /// Applies the transaction to table nat, wholly or not at all.
    pub(super) fn restore(&self, transaction: &Transaction) -> Result<(), DataplaneError> {
        self.restore_in(jumps::TABLE, transaction)
    }

    /// Applies the transaction to a table, wholly or not at all.
    pub(super) fn restore_in(
        &self,
        table: &str,
        transaction: &Transaction,
    ) -> Result<(), DataplaneError> {
        transaction
            .text_for(table)
            .map_or(Ok(()), |text| self.restore_text(&text))
    }

    /// Applies the text of a transaction, wholly or not at all.
    pub(crate) fn restore_text(&self, text: &str) -> Result<(), DataplaneError> {
        let program = self.programs().restore;
        let args = ["--noflush", "-w", LOCK_WAIT_SECONDS];
        let finished = self.tools.run(program, &args, text.as_bytes())?;
        if finished.status.success() {
            return Ok(());
        }
        Err(refused(program, &finished, Some(text)))
    }

    /// Returns whether iptables-legacy has a table in the network namespace of this thread. Always
    /// true for iptables-nft, where it does not matter.
    fn is_in_use(&self, table: &str) -> bool {
        let list = match (self.flavour, self.family) {
            (Flavour::Nft, _) => return true,
            (Flavour::Legacy, Family::V4) => "/proc/thread-self/net/ip_tables_names",
            (Flavour::Legacy, Family::V6) => "/proc/thread-self/net/ip6_tables_names",
        };
        let tables = std::fs::read_to_string(list);
        tables.is_ok_and(|tables| tables.lines().any(|found| found == table))
    }

    fn save(&self, args: &[&str]) -> Result<String, DataplaneError> {
        let program = self.programs().save;
        let finished = self.tools.run(program, args, &[])?;
        if finished.status.success() {
            return Ok(String::from_utf8_lossy(&finished.stdout).into_owned());
        }
        Err(refused(program, &finished, None))
    }
}

fn refused(program: &'static str, finished: &Finished, input: Option<&str>) -> DataplaneError {
    let stderr = finished.stderr.clone();
    let line = input.zip(line_number(&stderr)).and_then(|(input, number)| {
        let line = input.lines().nth(number.checked_sub(1)?)?;
        Some(format!("{number}: {line:?}"))
    });
    let sctp = line.as_ref().is_some_and(|line| line.contains("-p sctp "));
    let hint = if sctp {
        Some("this kernel does not translate SCTP (CONFIG_NF_CT_PROTO_SCTP, module xt_sctp)")
    } else {
        hint(&stderr)
    };
    DataplaneError::Refused {
        program,
        status: finished.status.to_string(),
        stderr,
        line,
        hint,
    }
}

/// Returns the line of the input that an error names: "Error occurred at line: 5", "line 5 failed",
/// "line 5: `CHAIN_ADD` failed (...)".
fn line_number(stderr: &str) -> Option<usize> {
    let (_, rest) = stderr.split_once("line")?;
    let rest = rest.trim_start_matches([':', ' ']);
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

/// Returns what to do about an error, because the programs do not say it.
fn hint(stderr: &str) -> Option<&'static str> {
    const HINTS: [(&str, &str); 6] = [
        (
            "Failed to initialize nft",
            "the kernel has no nf_tables (module nf_tables): load it, or use --iptables=legacy",
        ),
        (
            "xtables lock",
            "another iptables holds /run/xtables.lock: see who does, it is retried",
        ),
        (
            "Permission denied (you must be root)",
            "the container needs NET_ADMIN, and NET_RAW for iptables-legacy",
        ),
        ("Operation not permitted", "the container needs NET_ADMIN"),
        (
            "Table does not exist",
            "load the kernel's nat table (modprobe iptable_nat ip6table_nat), or use iptables-nft",
        ),
        (
            "No such file or directory",
            "a match or target module may be missing in the kernel",
        ),
    ];
    HINTS
        .into_iter()
        .find(|(sign, _)| stderr.contains(sign))
        .map(|(_, hint)| hint)
}

#[cfg(test)]
mod tests;
