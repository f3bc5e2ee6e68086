//! Detects which iptables the node uses: nft or legacy. Both can be in use at the same time, but a
//! program that uses one does not see the rules of the other, and it is not defined whose rules
//! come first.

use std::fmt;

use portmapping_shared::contract::CHAIN_PREFIX;

use super::DataplaneError;
use super::family::Family;
use super::forward;
use super::iptables::Flavour;
use super::snapshot::{SavedTables, Snapshot};

/// Prefix of chains that only the programs of Kubernetes make.
const KUBE_PREFIX: &str = "KUBE-";

/// The detected iptables, and the reason for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The iptables to use.
    pub flavour: Flavour,
    /// Why it is used.
    pub reason: String,
}

/// Detects which iptables the node uses; changes nothing.
pub fn detect(snapshot: &Snapshot) -> Result<Detected, DataplaneError> {
    choose(contents(&snapshot.nft), contents(&snapshot.legacy))
}

/// What one kind of iptables has, without empty built-in chains and without our own rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Contents {
    chains: usize,
    rules: usize,
    kube_chains: usize,
}

impl Contents {
    fn is_empty(self) -> bool {
        self.chains == 0 && self.rules == 0
    }

    fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(declaration) = line.strip_prefix(':') {
                let mut words = declaration.split_whitespace();
                let (chain, policy) = (words.next().unwrap_or_default(), words.next());
                // built-in chains have a policy, others have a dash
                if policy == Some("-") && !chain.starts_with(CHAIN_PREFIX) {
                    self.chains += 1;
                    self.kube_chains += usize::from(chain.starts_with(KUBE_PREFIX));
                }
            } else if line.starts_with("-A ")
                && !line.contains(CHAIN_PREFIX)
                && !line.contains(forward::COMMENT)
            {
                self.rules += 1;
            }
        }
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            chains,
            rules,
            kube_chains,
        } = self;
        write!(
            f,
            "{rules} rules, {chains} chains, {kube_chains} of them made by Kubernetes"
        )
    }
}

fn contents(saved: &SavedTables) -> Result<Contents, String> {
    let mut contents = Contents::default();
    contents.add(saved.ipv4.as_ref().map_err(ToString::to_string)?);
    // IPv6 may be missing
    contents.add(saved.of(Family::V6).unwrap_or_default());
    Ok(contents)
}

fn choose(
    nft: Result<Contents, String>,
    legacy: Result<Contents, String>,
) -> Result<Detected, DataplaneError> {
    let (flavour, reason) = match (nft, legacy) {
        (Err(nft), Err(legacy)) => {
            return Err(DataplaneError::NoIptables { nft, legacy });
        }
        (Ok(nft), Err(error)) => (
            Flavour::Nft,
            format!("it carries {nft}; iptables-legacy does not work: {error}"),
        ),
        (Err(error), Ok(legacy)) => (
            Flavour::Legacy,
            format!("it carries {legacy}; iptables-nft does not work: {error}"),
        ),
        (Ok(nft), Ok(legacy)) if nft.is_empty() && legacy.is_empty() => (
            Flavour::Nft,
            "neither kind carries rules, and nft is the default".to_owned(),
        ),
        (Ok(nft), Ok(legacy)) if legacy.is_empty() => (
            Flavour::Nft,
            format!("it carries {nft}; iptables-legacy is empty"),
        ),
        (Ok(nft), Ok(legacy)) if nft.is_empty() => (
            Flavour::Legacy,
            format!("it carries {legacy}; iptables-nft is empty"),
        ),
        (Ok(nft), Ok(legacy)) => {
            let (nft, legacy) = (nft.to_string(), legacy.to_string());
            return Err(DataplaneError::BothFlavours { nft, legacy });
        }
    };
    Ok(Detected { flavour, reason })
}

#[cfg(test)]
mod tests;
