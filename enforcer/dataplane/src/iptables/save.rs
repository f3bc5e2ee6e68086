//! Reads what iptables-save prints, in one pass: our chains, and the rules that lead into them.

use std::collections::BTreeMap;

use portmapping_shared::contract::CHAIN_PREFIX;

use super::layout::NAT;
use super::rule::{Rule, is_our_chain};

/// Our part of a table, borrowed from the text.
#[derive(Debug, Default)]
pub(super) struct Saved<'a> {
    /// Our chains and their rules, in order.
    pub(super) chains: BTreeMap<&'a str, Vec<&'a str>>,
    /// Rules in foreign chains that lead into ours.
    pub(super) references: Vec<Reference<'a>>,
}

/// A rule of a foreign or built-in chain with one of our chains as its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    /// The chain it stands in.
    pub(super) chain: &'a str,
    /// The rule, without its chain.
    pub(super) rule: &'a str,
    /// Its position in the chain, counted from 0.
    pub(super) position: usize,
}

impl<'a> Saved<'a> {
    /// Parses table nat of the text. Lines that cannot be parsed are skipped, because they are not ours.
    pub(super) fn parse(text: &'a str) -> Self {
        Self::parse_table(text, NAT)
    }

    /// Parses another table of the text.
    pub(super) fn parse_table(text: &'a str, table: &str) -> Self {
        let mut saved = Self::default();
        let mut in_table = false;
        let mut current = Run::default();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                in_table = name.trim_end() == table;
            } else if !in_table {
            } else if let Some(declaration) = line.strip_prefix(':') {
                let chain = declaration.split_whitespace().next().unwrap_or_default();
                if is_our_chain(chain) {
                    saved.chains.entry(chain).or_default();
                }
            } else if let Some(appended) = line.strip_prefix("-A ") {
                let (chain, rule) = appended.split_once(' ').unwrap_or((appended, ""));
                if current.chain != chain {
                    saved.take(std::mem::replace(&mut current, Run::of(chain)));
                }
                current.rules.push(rule.trim_end());
            }
        }
        saved.take(current);
        saved
    }

    /// Returns whether there is nothing of ours.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.references.is_empty()
    }

    fn take(&mut self, mut run: Run<'a>) {
        let Run { chain, .. } = run;
        if is_our_chain(chain) {
            let rules = self.chains.entry(chain).or_default();
            rules.append(&mut run.rules);
            return;
        }
        let leads_to_us = |rule: &str| {
            rule.contains(CHAIN_PREFIX)
                && Rule::parse(rule).is_some_and(|rule| rule.target().is_some_and(is_our_chain))
        };
        let rules = run.rules.into_iter().enumerate();
        let ours = rules.filter(|(_, rule)| leads_to_us(rule));
        self.references
            .extend(ours.map(|(position, rule)| Reference {
                chain,
                rule,
                position,
            }));
    }
}

/// All rules of one chain: iptables-save prints them together.
#[derive(Debug, Default)]
struct Run<'a> {
    chain: &'a str,
    rules: Vec<&'a str>,
}

impl<'a> Run<'a> {
    fn of(chain: &'a str) -> Self {
        Self {
            chain,
            rules: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
