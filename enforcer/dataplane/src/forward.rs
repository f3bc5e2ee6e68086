//! Keeps the FORWARD chain open for mapped pods where its policy is DROP, as Docker sets it.
//!
//! With this policy, translated packets would be dropped on their way to the pod. A rule at the end
//! of FORWARD accepts only packets that are translated and were sent to a port of our range. It is
//! appended, so that other rules still drop what they dropped before, and the policy stays
//! unchanged. The rule is removed when the policy changes or nothing is mapped.
//!
//! Both kinds of iptables are read with every backend, because a packet that either drops is lost. What no
//! rule of ours can change is an obstacle, which the enforcer reports: a chain that drops before our rule, one
//! that cannot be read, or a chain of another table, such as firewalld's.

mod finding;

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use portmapping_shared::{HostPort, PortRange, PortSet};

use super::change_monitor::GenerationSocket;
use super::exec::Tools;
use super::family::Family;
use super::flavour::Flavour;
use super::iptables::commands::{Commands, is_incompatible};
use super::nftables;
use super::settings::{span_text, spans};
use super::snapshot::Snapshot;
use super::{DataplaneError, Obstacle};
use finding::Finding;

/// The comment of our rules.
pub(super) const COMMENT: &str = "-m comment --comment portmapping ";
const CHAIN: &str = "FORWARD";
/// Shortest time between two reads of the chains of other tables: kube-proxy with nftables can have very
/// many, and changes them all the time.
const OTHERS_EVERY: Duration = Duration::from_mins(1);

/// Keeps FORWARD open for mapped ports.
#[derive(Debug)]
pub(super) struct Forward {
    /// The rules as iptables-save writes them, without their chain.
    rules: Vec<String>,
    tables: Vec<Table>,
    generation: GenerationSocket,
    /// The generation of `nf_tables` at the last read.
    read_at: Option<u32>,
    others: Others,
}

/// The chains of other tables that drop forwarded packets.
#[derive(Debug, Default)]
struct Others {
    found: BTreeSet<String>,
    /// When they were read, and at which generation.
    read: Option<(Instant, Option<u32>)>,
}

/// The filter table of one family and flavour.
#[derive(Debug)]
struct Table {
    commands: Commands,
    found: Finding,
    /// The last read failed, so `found` is older: it is read again whatever the generation.
    outdated: bool,
    /// Why our rules could not be written.
    refused: Option<String>,
    /// Why the chain cannot be read, and what that means; None where it can.
    unreadable: Option<Unreadable>,
}

/// What is known of a chain that cannot be read.
#[derive(Debug)]
struct Unreadable {
    reason: String,
    /// Whether its policy drops, if the kernel says it.
    drops: Option<bool>,
}

impl Forward {
    /// Prepares rules that accept the ports of a range, without those that are never mapped.
    pub(super) fn new(range: PortRange, excluded: &PortSet, tools: &Tools) -> Self {
        let rule = |(first, last): (HostPort, HostPort)| {
            let ports = span_text(first, last);
            format!("-m conntrack --ctstate DNAT --ctorigdstport {ports} {COMMENT}-j ACCEPT")
        };
        Self {
            rules: spans(range, excluded).into_iter().map(rule).collect(),
            tables: tables(tools).collect(),
            generation: GenerationSocket::default(),
            read_at: None,
            others: Others::default(),
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
                    table.take(text);
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
        self.others.read(generation);
        thread::scope(|scope| {
            for table in &mut self.tables {
                if !same || table.outdated || table.commands.flavour == Flavour::Legacy {
                    scope.spawn(|| table.read());
                }
            }
        });
    }

    /// Returns whether mapped pods can be reached, as of the last read; `wanted` says whether there
    /// are any.
    pub(super) fn is_open(&self, wanted: bool) -> bool {
        let lacks = |table: &Table| wanted && table.lacks(&self.rules) && table.refused.is_none();
        !self.tables.iter().any(lacks)
    }

    /// Removes rules of ours that are not needed, and tries those again that were refused.
    pub(super) fn tidy(&mut self, wanted: bool) {
        for table in &mut self.tables {
            // a rule that is not needed is removed here, and not reported as damage
            let needed = wanted && table.found.drops;
            if !needed && !table.found.ours.is_empty() {
                table.put(&[]);
            }
            // no change of the mappings may follow, with which it would be tried again
            if needed && table.refused.is_some() && table.found.ours != self.rules {
                table.put(&self.rules);
            }
        }
    }

    /// Returns what may keep clients from mapped pods and no rule of ours can change, as of the last read.
    pub(super) fn obstacles(&self) -> Vec<Obstacle> {
        let tables = self.tables.iter().filter_map(Table::obstacle);
        let others = self.others.found.iter().map(|chain| Obstacle {
            text: format!(
                "chain {chain} drops what its rules do not accept: let it accept translated connections \
                 (ct status dnat)"
            ),
            closes: None,
        });
        tables.chain(others).collect()
    }

    /// Returns why this kind of iptables cannot print FORWARD, if one family's has a rule of another program
    /// that it cannot print.
    pub(super) fn unprintable(&self, flavour: Flavour) -> Option<String> {
        let mut tables = self.tables.iter();
        let table =
            tables.find(|table| table.commands.flavour == flavour && table.unreadable.is_some())?;
        let reason = table.unreadable.as_ref().map(|found| found.reason.as_str());
        Some(format!(
            "FORWARD of {flavour} ({}) cannot be read: {}",
            table.commands.family,
            reason.unwrap_or_default()
        ))
    }

    /// Adds the rules where the last read found them missing. A failure is an obstacle, and does not make
    /// the change of the mappings fail.
    pub(super) fn apply(&mut self, wanted: bool) {
        for table in self.tables.iter_mut().filter(|_| wanted) {
            if table.lacks(&self.rules) {
                table.put(&self.rules);
            }
        }
    }
}

/// Removes our rules from every filter table; continues after failures and returns them.
pub(super) fn uninstall(tools: &Tools) -> Vec<DataplaneError> {
    let remove = |mut table: Table| {
        let text = match table.commands.save_filter() {
            Err(error) if error.is_missing_iptables() => return None,
            text => text.or_else(|_unprintable| table.commands.save_forward()),
        };
        match text {
            Ok(text) => table.found = Finding::read(&text),
            Err(error) => {
                let (program, family) = (table.commands.flavour, table.commands.family);
                tracing::warn!(
                    %error, %program, %family,
                    "FORWARD cannot be read: delete its rules with the comment portmapping, if there are any"
                );
            }
        }
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
        refused: None,
        unreadable: None,
    })
}

impl Others {
    /// Reads them, unless nothing changed since the last read or it is too early.
    fn read(&mut self, generation: Option<u32>) {
        let is_new = |(at, then): (Instant, Option<u32>)| {
            at.elapsed() >= OTHERS_EVERY && (then.is_none() || then != generation)
        };
        if !self.read.is_none_or(is_new) {
            return;
        }
        self.read = Some((Instant::now(), generation));
        match nftables::forward_chains() {
            Ok(found) => self.found = found,
            // a kernel without nf_tables has none
            Err(error) => tracing::debug!(%error, "the chains of other tables cannot be read"),
        }
    }
}

impl Table {
    fn read(&mut self) {
        let text = self.commands.save_filter();
        match text {
            Ok(text) => {
                self.outdated = false;
                self.unreadable = None;
                self.take(&text);
            }
            Err(error) if error.is_unprintable() => self.is_unreadable(&error.to_string()),
            Err(error) => {
                self.outdated = true;
                // not installed, or locked by another program
                tracing::debug!(%error, "a filter table cannot be read");
            }
        }
    }

    fn take(&mut self, text: &str) {
        self.found = Finding::read(text);
        if self.found.closed && self.commands.flavour == Flavour::Nft {
            // the rule that drops may have a condition that is not printed
            self.found.closed = nftables::filter_has_sets(self.commands.family) == Some(false);
        }
    }

    /// Whether the chain drops and has not these rules of ours. Where it cannot be read, they would not be found
    /// again, so none are made; those that are there stay.
    fn lacks(&self, rules: &[String]) -> bool {
        self.found.drops && self.unreadable.is_none() && self.found.ours != rules
    }

    /// Records what is known of a chain that cannot be read, and what is not.
    fn is_unreadable(&mut self, reason: &str) {
        self.outdated = true;
        let (program, family) = (self.commands.flavour, self.commands.family);
        let drops = match program {
            Flavour::Nft => nftables::forward_drops(family),
            Flavour::Legacy => None,
        };
        if drops == Some(false) && self.unreadable.is_none() {
            tracing::info!(
                %program, %family, reason,
                "FORWARD has rules that cannot be printed; its policy accepts, so mapped ports need no rule there"
            );
        }
        let reason = reason.to_owned();
        self.unreadable = Some(Unreadable { reason, drops });
    }

    /// Returns why clients may not reach mapped pods through this chain, and what helps.
    fn obstacle(&self) -> Option<Obstacle> {
        let family = self.commands.family;
        let chain = format!("FORWARD of {} ({family})", self.commands.flavour);
        let mut closed = self.found.closed && self.unreadable.is_none();
        let text = if let Some(Unreadable { reason, drops }) = &self.unreadable {
            let policy = match drops {
                Some(false) => return None,
                Some(true) => "drops by default",
                None => "may drop",
            };
            format!(
                "{chain} {policy}, and its rules cannot be read ({reason}): accept translated connections \
                 (ctstate DNAT) there"
            )
        } else if self.found.sealed && !closed {
            format!(
                "{chain} has a rule that drops what no rule before it accepts: accept translated connections \
                 (ctstate DNAT) before it"
            )
        } else if self.found.sealed {
            format!(
                "{chain} has a rule that drops everything: accept translated connections (ctstate DNAT) before it"
            )
        } else {
            let refused = self.refused.as_ref().filter(|_| self.found.drops)?;
            closed = self.found.accepts_at.is_none();
            format!(
                "{chain} drops by default, and no rule of ours can accept mapped ports: {refused}"
            )
        };
        Some(Obstacle {
            text,
            closes: closed.then_some(family),
        })
    }

    fn put(&mut self, rules: &[String]) {
        if let Err(error) = self.write(rules) {
            self.refused = Some(error.to_string());
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
        self.refused = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
