//! Drops what conntrack calls invalid, so that it does not reach the node's own TCP.
//!
//! ```text
//! INPUT (table mangle) --> PORTMAPPING --> PORTMAPPING-DROP
//!  (invalid)               (one rule per   (one rule per protocol, for
//!                           host address)   the ports that may be mapped)
//! ```
//!
//! A segment outside of the TCP window is not translated. The node has no connection for it and would
//! reset that of the client. The rules do not name the mapped ports: a rule for each would make every
//! change twice as large. They name the range without the ports that are never mapped: those excluded,
//! and static host ports of pods. So they also drop invalid packets for other programs that use a port
//! of the range.

use std::time::{Duration, Instant};

use portmapping_shared::Protocol;
use portmapping_shared::contract::CHAIN_PREFIX;

use super::commands::Commands;
use super::layout::{Chains, INVALID_JUMP, MANGLE};
use super::reading::{jumps_of_ours, same_rules};
use super::save::Saved;
use super::transaction::Transaction;
use crate::DataplaneError;
use crate::family::Family;
use crate::settings::{Settings, span_text, spans};

/// The table of these rules. Its chain INPUT comes before the filters of other programs.
const DROP: &str = "PORTMAPPING-DROP";
/// After a failure the rules are tried again with the first change of the mappings after this time.
const RETRY_AFTER: Duration = Duration::from_mins(10);

/// The rules of one family.
#[derive(Debug)]
pub(super) struct InvalidRules {
    commands: Commands,
    /// The chains as they should be.
    chains: Chains,
    /// Whether the static host ports are known. Before, ports that an earlier run left out stay so.
    known: bool,
    /// What the table lacks, as of the last read; None until the next read.
    repair: Option<Transaction>,
    /// When they failed last; it was logged then. Mappings work without them.
    failed: Option<Instant>,
    /// Whether the kernel has the match of SCTP, as far as is known.
    sctp: bool,
}

impl InvalidRules {
    pub(super) fn new(commands: Commands, settings: &Settings) -> Self {
        Self {
            chains: chains(commands.family, settings),
            known: settings.static_ports.is_some(),
            commands,
            repair: None,
            failed: None,
            sctp: true,
        }
    }

    /// Replaces host addresses and static host ports; the next change or read compares the table with them.
    pub(super) fn set(&mut self, settings: &Settings) {
        self.chains = chains(self.commands.family, settings);
        self.known = settings.static_ports.is_some();
        if !self.sctp {
            remove_sctp(&mut self.chains);
        }
        self.repair = None;
    }

    /// Records the table as iptables-save printed it.
    pub(super) fn take(&mut self, text: &str) {
        self.repair = Some(repair(&self.chains, self.known, text));
    }

    /// Returns whether the rules were as they should be at the last read, or cannot be made on this
    /// node.
    pub(super) fn is_intact(&self) -> bool {
        self.failed.is_some() || self.is_complete()
    }

    fn is_complete(&self) -> bool {
        self.repair.as_ref().is_none_or(Transaction::is_empty)
    }

    /// Makes what is missing. Returns the number of commits. A failure is logged once, and does not
    /// make the change of the mappings fail.
    pub(super) fn apply(&mut self) -> u32 {
        let failed_lately = self.failed.is_some_and(|at| at.elapsed() < RETRY_AFTER);
        if failed_lately || self.is_complete() {
            return 0;
        }
        let mut repair = self.repair.take().unwrap_or_default();
        let mut made = self.commands.restore_in(MANGLE, &repair);
        let refused = made.as_ref().err();
        if self.sctp && refused.is_some_and(DataplaneError::is_missing_match) {
            remove_sctp(&mut repair.chains);
            made = self.commands.restore_in(MANGLE, &repair);
            if made.is_ok() {
                tracing::info!(
                    "the kernel has no match for SCTP: invalid packets of SCTP are not dropped"
                );
                self.sctp = false;
                remove_sctp(&mut self.chains);
            }
        }
        match made {
            Ok(()) => {
                self.repair = Some(Transaction::default());
                self.failed = None;
                1
            }
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                let family = self.commands.family;
                tracing::warn!(
                    error, %family,
                    "invalid packets to mapped ports cannot be dropped (table mangle): a segment that \
                     arrives late may reset its connection"
                );
                self.failed = Some(Instant::now());
                0
            }
        }
    }
}

/// Removes the rules for SCTP, whose match a kernel may lack.
fn remove_sctp(chains: &mut Chains) {
    let sctp = format!("-p {} ", Protocol::Sctp.as_kernel_str());
    for rules in chains.values_mut() {
        rules.retain(|rule| !rule.starts_with(&sctp));
    }
}

fn chains(family: Family, settings: &Settings) -> Chains {
    let addresses = settings.host_addresses.iter();
    let addresses = addresses.filter(|ip| Family::of(**ip) == family);
    let length = family.host_length();
    let entry = addresses.map(|ip| format!("-d {ip}/{length} -g {DROP}"));
    let rules = Protocol::ALL.into_iter().flat_map(|protocol| {
        let mut never = settings.excluded.clone();
        let claimed = settings.static_ports.iter().flatten();
        for (_, port) in claimed.filter(|(of, _)| *of == protocol) {
            never.insert(*port);
        }
        let protocol = protocol.as_kernel_str();
        let spans = spans(settings.range, &never).into_iter();
        spans.map(move |(first, last)| {
            let ports = span_text(first, last);
            format!("-p {protocol} -m {protocol} --dport {ports} -j DROP")
        })
    });
    Chains::from([
        (CHAIN_PREFIX.to_owned(), entry.collect()),
        (DROP.to_owned(), rules.collect()),
    ])
}

/// Returns the transaction that makes the table as it should be. `known`: whether the static host ports
/// are known.
fn repair(expected: &Chains, known: bool, text: &str) -> Transaction {
    let saved = Saved::parse_table(text, MANGLE);
    let same = |chain: &String, rules: &Vec<String>| {
        let found = saved.chains.get(chain.as_str());
        let may_stay = |found: &[&str]| !known && chain == DROP && !found.is_empty();
        found.is_some_and(|found| same_rules(rules, found) || may_stay(found))
    };
    let mut chains = expected.clone();
    chains.retain(|chain, rules| !same(chain, rules));
    let obsolete = saved.chains.keys();
    let obsolete = obsolete.filter(|chain| !expected.contains_key(**chain));
    let mut repair = Transaction {
        chains,
        obsolete: obsolete.map(|chain| (*chain).to_owned()).collect(),
        ..Transaction::default()
    };
    let jumps = jumps_of_ours(&saved, &INVALID_JUMP);
    if !matches!(jumps.as_slice(), [only] if same_rules(&[INVALID_JUMP.rule], &[only.rule])) {
        let jumps = jumps.iter();
        let deleted = jumps.map(|jump| (jump.chain.to_owned(), jump.rule.to_owned()));
        repair.deleted = deleted.collect();
        let jump = (INVALID_JUMP.from.to_owned(), INVALID_JUMP.rule.to_owned());
        repair.inserted = vec![jump];
    }
    repair
}

#[cfg(test)]
mod tests;
