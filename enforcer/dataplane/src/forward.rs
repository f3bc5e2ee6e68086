//! Keeps the FORWARD chain open for mapped pods where its policy is DROP, as Docker sets it.
//!
//! With this policy, translated packets would be dropped on their way to the pod. A rule at the end
//! of FORWARD accepts only packets that are translated and were sent to a port of our range. It is
//! appended, so that other rules still drop what they dropped before, and the policy stays
//! unchanged. The rule is removed when the policy changes or nothing is mapped.
//!
//! Both kinds of iptables are read with every backend, because a packet that either drops is lost.

use std::thread;

use portmapping_shared::{HostPort, PortRange, PortSet};

use super::DataplaneError;
use super::change_monitor::GenerationSocket;
use super::exec::Tools;
use super::family::Family;
use super::iptables::Flavour;
use super::iptables::commands::{Commands, is_incompatible};
use super::nftables;
use super::settings::spans;
use super::snapshot::Snapshot;

/// The comment of our rules.
pub(super) const COMMENT: &str = "-m comment --comment portmapping ";
const CHAIN: &str = "FORWARD";

/// Keeps FORWARD open for mapped ports.
#[derive(Debug)]
pub(super) struct Forward {
    /// The rules as iptables-save writes them, without their chain.
    rules: Vec<String>,
    tables: Vec<Table>,
    generation: GenerationSocket,
    /// The generation of `nf_tables` at the last read.
    read_at: Option<u32>,
}

/// The filter table of one family and flavour.
#[derive(Debug)]
struct Table {
    commands: Commands,
    found: Finding,
    /// The last read failed, so `found` is older: it is read again whatever the generation.
    outdated: bool,
    /// Whether a failure was logged already.
    complained: bool,
    /// Whether it was logged that the table cannot be read.
    warned: bool,
}

/// The state of a table's FORWARD chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Finding {
    /// Whether the policy drops packets that no rule matches.
    drops: bool,
    /// Whether its last rule drops every packet. A rule of ours after it has no effect, and we
    /// insert none before it.
    sealed: bool,
    /// Rules of ours, in order.
    ours: Vec<String>,
}

impl Forward {
    /// Prepares rules that accept the ports of a range, without those that are never mapped.
    pub(super) fn new(range: PortRange, excluded: &PortSet, tools: &Tools) -> Self {
        let rule = |(first, last): (HostPort, HostPort)| {
            let ports = if first == last {
                first.to_string()
            } else {
                format!("{first}:{last}")
            };
            format!("-m conntrack --ctstate DNAT --ctorigdstport {ports} {COMMENT}-j ACCEPT")
        };
        Self {
            rules: spans(range, excluded).into_iter().map(rule).collect(),
            tables: tables(tools).collect(),
            generation: GenerationSocket::default(),
            read_at: None,
        }
    }

    /// Records the tables that were read at the start.
    pub(super) fn take(&mut self, snapshot: &Snapshot) {
        for table in &mut self.tables {
            let saved = match table.commands.flavour {
                Flavour::Nft => &snapshot.nft,
                Flavour::Legacy => &snapshot.legacy,
            };
            let text = match table.commands.family {
                Family::V4 => saved.ipv4.as_deref(),
                Family::V6 => saved.ipv6.as_deref(),
            };
            match text {
                Ok(text) if !is_incompatible(text, "filter") => {
                    table.outdated = false;
                    table.found = Finding::read(text);
                }
                Ok(_) => table.is_unreadable("it has rules that nft made"),
                Err(error) if error.is_missing_iptables() => table.outdated = true,
                Err(error) => table.is_unreadable(&error.to_string()),
            }
        }
        self.read_at = snapshot.nft.generation;
    }

    /// Reads the filter tables at the same time, those of iptables-nft only if `nf_tables` has
    /// changed or the last read failed. A table that was never read counts as open.
    pub(super) fn read(&mut self) {
        let generation = self.generation.current();
        let same = generation.is_some() && generation == self.read_at;
        self.read_at = generation;
        thread::scope(|scope| {
            for table in &mut self.tables {
                if !same || table.outdated || table.commands.flavour == Flavour::Legacy {
                    scope.spawn(|| table.read());
                }
            }
        });
    }

    /// Returns whether mapped pods can be reached, as of the last read; `wanted` says whether there
    /// are any. Removes rules of ours that are not needed.
    pub(super) fn is_open(&mut self, wanted: bool) -> bool {
        for table in &mut self.tables {
            // a rule that is not needed is removed here, and not reported as damage
            let needed = wanted && table.found.drops;
            if !needed && !table.found.ours.is_empty() {
                table.put(&[]);
            }
        }
        let lacks = |table: &Table| {
            wanted && table.found.drops && table.found.ours != self.rules && !table.complained
        };
        !self.tables.iter().any(lacks)
    }

    /// Adds the rules where the last read found them missing. A failure is logged once, and does
    /// not make the change of the mappings fail.
    pub(super) fn apply(&mut self, wanted: bool) {
        for table in self.tables.iter_mut().filter(|_| wanted) {
            if table.found.sealed {
                table.complain(
                    "its last rule drops everything; accept translated connections before it",
                );
            } else if table.found.drops && table.found.ours != self.rules {
                table.put(&self.rules);
            }
        }
    }
}

/// Removes our rules from every filter table; continues after failures and returns them.
pub(super) fn uninstall(tools: &Tools) -> Vec<DataplaneError> {
    let remove = |mut table: Table| {
        table.read();
        if table.found.ours.is_empty() {
            return None;
        }
        table.write(&[]).err()
    };
    tables(tools).filter_map(remove).collect()
}

fn tables(tools: &Tools) -> impl Iterator<Item = Table> {
    let kinds = Flavour::ALL
        .into_iter()
        .flat_map(|flavour| Family::ALL.map(|family| (family, flavour)));
    kinds.map(|(family, flavour)| Table {
        commands: Commands::new(family, flavour, tools.clone()),
        found: Finding::default(),
        outdated: false,
        complained: false,
        warned: false,
    })
}

impl Table {
    fn read(&mut self) {
        let text = self.commands.save_filter();
        match text {
            Ok(text) => {
                self.outdated = false;
                self.warned = false;
                self.found = Finding::read(&text);
            }
            Err(error) if error.is_unprintable() => self.is_unreadable(&error.to_string()),
            Err(error) => {
                self.outdated = true;
                // not installed, or locked by another program
                tracing::debug!(%error, "a filter table cannot be read");
            }
        }
    }

    /// Says once what is known of a chain that cannot be read, and what is not. A rule of ours cannot
    /// be found there again, so none is made.
    fn is_unreadable(&mut self, reason: &str) {
        self.outdated = true;
        if std::mem::replace(&mut self.warned, true) {
            return;
        }
        let (program, family) = (self.commands.flavour, self.commands.family);
        let policy = match program {
            Flavour::Nft => nftables::forward_drops(family),
            Flavour::Legacy => None,
        };
        match policy {
            Some(false) => tracing::info!(
                %program, %family, reason,
                "FORWARD cannot be read; its policy accepts mapped connections"
            ),
            Some(true) => tracing::warn!(
                %program, %family, reason,
                "FORWARD drops by default, and its rules cannot be read, so no rule of ours can accept mapped \
                 ports: accept translated connections (ctstate DNAT) there"
            ),
            None => tracing::warn!(
                %program, %family, reason,
                "FORWARD cannot be read: if it drops, clients do not reach mapped pods; accept translated \
                 connections (ctstate DNAT) there"
            ),
        }
    }

    fn put(&mut self, rules: &[String]) {
        if let Err(error) = self.write(rules) {
            self.complain(&error.to_string());
        }
    }

    fn write(&mut self, rules: &[String]) -> Result<(), DataplaneError> {
        let gone = self
            .found
            .ours
            .iter()
            .map(|rule| format!("-D {CHAIN} {rule}"));
        let new = rules.iter().map(|rule| format!("-A {CHAIN} {rule}"));
        let lines: Vec<String> = gone.chain(new).collect();
        let text = format!("*filter\n{}\nCOMMIT\n", lines.join("\n"));
        self.commands.restore_text(&text)?;
        let (program, family) = (self.commands.flavour, self.commands.family);
        if rules.is_empty() {
            tracing::info!(%program, %family, "removed our rule from FORWARD: it is not needed");
        } else {
            tracing::info!(%program, %family, "FORWARD drops by default: added a rule that accepts mapped ports");
        }
        self.found.ours = rules.to_vec();
        self.complained = false;
        Ok(())
    }

    fn complain(&mut self, reason: &str) {
        if !self.complained {
            let (program, family) = (self.commands.flavour, self.commands.family);
            tracing::warn!(
                %program, %family, reason,
                "FORWARD drops, and no rule of ours can accept mapped ports: clients may not reach the pods"
            );
        }
        self.complained = true;
    }
}

impl Finding {
    /// Parses the output of iptables-save.
    fn read(text: &str) -> Self {
        let mut found = Self::default();
        let mut in_filter = false;
        for line in text.lines() {
            if let Some(table) = line.strip_prefix('*') {
                in_filter = table.trim_end() == "filter";
            } else if !in_filter {
            } else if let Some(declared) = line.strip_prefix(":FORWARD ") {
                found.drops |= declared.starts_with("DROP");
            } else if let Some(rule) = line.strip_prefix("-A FORWARD ") {
                let rule = rule.trim_end();
                if rule.contains(COMMENT) {
                    found.ours.push(rule.to_owned());
                } else {
                    found.sealed = rule == "-j DROP" || rule.starts_with("-j REJECT");
                }
            }
        }
        found.drops &= !found.sealed;
        found
    }
}

#[cfg(test)]
mod tests;
