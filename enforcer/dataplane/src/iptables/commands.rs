//! Runs iptables-save and iptables-restore, and explains their errors.

use std::fmt::Write as _;

use crate::DataplaneError;
use crate::exec::{Finished, Tools};

use super::layout::{INVALID_JUMP, JUMPS, MANGLE, NAT};
use super::transaction::Transaction;
use crate::family::Family;
use crate::flavour::{Flavour, Programs};
use crate::nftables;

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

    /// Returns tables nat and mangle as text, perhaps with others; a table that is not in use may be
    /// missing. One run prints all tables: iptables-nft reads the rules of all of them for each run.
    pub(super) fn save_ours(&self) -> Result<String, DataplaneError> {
        // iptables-legacy makes the table then, and says whether it may; a node without IPv6 rules
        // must not get one
        if self.family == Family::V4 && !self.is_in_use(NAT) {
            self.save(&["-t", NAT], &[])?;
        }
        match self.save_all() {
            Err(error) if error.is_unprintable() => {}
            saved => return saved,
        }
        // the rule that cannot be printed may be in a table that is not needed
        let mut text = self.save_table(NAT)?;
        text += &self.save_table(MANGLE)?;
        Ok(text)
    }

    /// Returns table filter as text; empty if the table is not in use.
    pub(crate) fn save_filter(&self) -> Result<String, DataplaneError> {
        self.save_table("filter")
    }

    /// Returns chain FORWARD of table filter as text. This works where a rule of another chain cannot be
    /// printed.
    pub(crate) fn save_forward(&self) -> Result<String, DataplaneError> {
        let printed = self.run(&["-t", "filter", "-S", "FORWARD"])?;
        if !printed.status.success() {
            return Err(refused(self.programs().iptables, &printed, None));
        }
        let rules = String::from_utf8_lossy(&printed.stdout);
        Ok(format!("*filter\n{rules}"))
    }

    /// Returns a table as text; empty if it is not in use, because iptables-legacy makes a table when
    /// it reads it.
    fn save_table(&self, table: &str) -> Result<String, DataplaneError> {
        if !self.is_in_use(table) {
            return Ok(String::new());
        }
        self.save(&["-t", table], &[table])
    }

    /// Returns all tables in use as text. Of the others, a table that cannot be printed is left out.
    pub(crate) fn save_all(&self) -> Result<String, DataplaneError> {
        self.save(&[], &[NAT, MANGLE])
    }

    /// Returns our part of the tables as text, chain by chain. This works where a rule of another
    /// program cannot be printed, and takes some milliseconds per chain. For iptables-nft only.
    pub(crate) fn save_own(&self) -> Result<String, DataplaneError> {
        let mut text = String::new();
        for (table, jumps) in [
            (NAT, JUMPS.as_slice()),
            (MANGLE, std::slice::from_ref(&INVALID_JUMP)),
        ] {
            let _ = writeln!(text, "*{table}");
            for chain in nftables::iptables_chains(self.family, table) {
                let printed = self.run(&["-t", table, "-S", &chain])?;
                if !printed.status.success() {
                    return Err(refused(self.programs().iptables, &printed, None));
                }
                let printed = String::from_utf8_lossy(&printed.stdout);
                let _ = writeln!(text, ":{chain} - [0:0]");
                let rules = printed.lines().filter(|line| line.starts_with("-A "));
                text.extend(rules.flat_map(|rule| [rule, "\n"]));
            }
            for jump in jumps {
                let words = ["-t", table, "-C", jump.from].into_iter();
                let words: Vec<&str> = words.chain(jump.rule.split(' ')).collect();
                if self.run(&words)?.status.success() {
                    let _ = writeln!(text, "-A {} {}", jump.from, jump.rule);
                }
            }
        }
        Ok(text)
    }

    fn run(&self, args: &[&str]) -> Result<Finished, DataplaneError> {
        Ok(self.tools.run(self.programs().iptables, args, &[])?)
    }

    /// Applies the transaction to table nat, wholly or not at all.
    pub(super) fn restore(&self, transaction: &Transaction) -> Result<(), DataplaneError> {
        self.restore_in(NAT, transaction)
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
    pub(super) fn is_in_use(&self, table: &str) -> bool {
        let list = match (self.flavour, self.family) {
            (Flavour::Nft, _) => return true,
            (Flavour::Legacy, Family::V4) => "/proc/thread-self/net/ip_tables_names",
            (Flavour::Legacy, Family::V6) => "/proc/thread-self/net/ip6_tables_names",
        };
        let tables = std::fs::read_to_string(list);
        tables.is_ok_and(|tables| tables.lines().any(|found| found == table))
    }

    /// Runs iptables-save. Fails if it cannot print one of these tables.
    fn save(&self, args: &[&str], tables: &[&str]) -> Result<String, DataplaneError> {
        let program = self.programs().save;
        let finished = self.tools.run(program, args, &[])?;
        let text = String::from_utf8_lossy(&finished.stdout).into_owned();
        if !finished.status.success() {
            return Err(unprintable_rule(program, &text, &finished.stderr)
                .unwrap_or_else(|| refused(program, &finished, None)));
        }
        match tables.iter().find(|table| is_incompatible(&text, table)) {
            Some(table) => Err(DataplaneError::Unprintable {
                program,
                message: format!("table {table} has rules that nft made"),
                hint: Some("find them with `nft list ruleset`"),
            }),
            None => Ok(text),
        }
    }
}

/// Returns whether iptables-nft-save left a table out, because it has rules of another kind. It
/// exits with success then.
pub(crate) fn is_incompatible(text: &str, table: &str) -> bool {
    text.contains(&format!("# Table `{table}' is incompatible"))
}

/// Returns the error of a program that ended within a rule. It prints a rule piece by piece, so the
/// beginning of the last one names the match or target that it cannot print.
fn unprintable_rule(program: &'static str, text: &str, stderr: &str) -> Option<DataplaneError> {
    let rule = text.lines().last().filter(|line| line.starts_with("-A "))?;
    let rule: String = rule.chars().take(200).collect();
    let ipset = stderr.contains("ipset");
    Some(DataplaneError::Unprintable {
        program,
        message: format!("{stderr} The rule begins with: {rule}"),
        hint: ipset.then_some(
            "it uses an ipset, which can be printed with the capability NET_RAW only: install \
             overlays/legacy-iptables, which adds it",
        ),
    })
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
    const HINTS: [(&str, &str); 7] = [
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
            "the container needs NET_ADMIN, and NET_RAW for iptables-legacy; where it has them, a \
             security module (SELinux, AppArmor) or a seccomp profile of the node denies the call: \
             permit it for this container",
        ),
        (
            "Operation not permitted",
            "the container needs NET_ADMIN; where it has it, a security module (SELinux, AppArmor) \
             or a seccomp profile of the node denies the call: permit it for this container",
        ),
        (
            "Too many open files",
            "the limit of open files is used up: raise the container runtime's limit (LimitNOFILE)",
        ),
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
