//! Chooses the backend of a node: iptables as the node uses it, or nftables.
//!
//! There are two kinds of iptables: nft and legacy. Both can be in use at the same time, but a
//! program that uses one does not see the rules of the other, and it is not defined whose rules
//! come first.

use std::fmt;

use portmapping_shared::contract::CHAIN_PREFIX;

use super::backend::Backend;
use super::exec::Tools;
use super::family::Family;
use super::flavour::Flavour;
use super::forward;
use super::iptables::commands::is_incompatible;
use super::iptables::{self, SavedTables};
use super::settings::Settings;
use super::snapshot::Snapshot;
use super::{DataplaneError, Observed};

/// Prefix of chains that only the programs of Kubernetes make.
const KUBE_PREFIX: &str = "KUBE-";
const FILTER: &str = "filter";

/// A backend, and the reason for log and state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The backend to use.
    pub backend: Backend,
    /// Why it is used.
    pub reason: String,
    /// The same in one word or two, for metrics.
    pub cause: &'static str,
    /// Whether another one may be chosen when it stops working.
    pub automatic: bool,
}

/// Chooses the backend: iptables where it works on this node, else nftables. The backend that has
/// rules of ours stays as long as it works. `only` allows one kind of iptables.
///
/// Changes nothing that stays: our matches and targets are tried in a chain that no packet enters.
#[must_use]
pub fn choose(
    snapshot: &Snapshot,
    settings: &Settings,
    tools: &Tools,
    only: Option<Flavour>,
) -> Chosen {
    let of = |flavour| match flavour {
        Flavour::Nft => &snapshot.nft,
        Flavour::Legacy => &snapshot.legacy,
    };
    let allowed = |(backend, found): &&(Backend, Observed)| match backend {
        Backend::Iptables(flavour) => {
            only.is_none_or(|only| only == *flavour) && !found.mappings.is_empty()
        }
        Backend::Nftables => true,
    };
    let ours = snapshot.leftovers.iter().filter(allowed);
    let ours: Vec<Backend> = ours.map(|(backend, _)| *backend).collect();
    if let [backend] = ours.as_slice()
        && is_readable(*backend, snapshot)
    {
        return Chosen {
            backend: *backend,
            reason: "it has the rules of an earlier start".to_owned(),
            cause: "earlier rules",
            automatic: true,
        };
    }
    let detected = match only {
        Some(flavour) => match state(of(flavour)) {
            State::Readable(_) => Ok(Detected {
                flavour,
                reason: format!("the flag --iptables names {flavour}"),
            }),
            State::Unreadable(message) | State::Missing(message) => {
                Err(DataplaneError::IptablesUnreadable { flavour, message })
            }
        },
        None => detect(snapshot),
    };
    let tried = detected.and_then(|detected| {
        iptables::rehearse(of(detected.flavour), settings, tools)?;
        Ok(detected)
    });
    match tried {
        Ok(Detected { flavour, reason }) => Chosen {
            backend: flavour.into(),
            reason,
            cause: "iptables works",
            automatic: true,
        },
        Err(error) => Chosen {
            backend: Backend::Nftables,
            reason: format!("iptables cannot be used: {error}"),
            cause: "iptables unusable",
            automatic: true,
        },
    }
}

/// Returns whether the rules around ours can be read. A node without ip6tables has IPv4 rules only.
fn is_readable(backend: Backend, snapshot: &Snapshot) -> bool {
    let saved = match backend {
        Backend::Iptables(Flavour::Nft) => &snapshot.nft,
        Backend::Iptables(Flavour::Legacy) => &snapshot.legacy,
        Backend::Nftables => return true,
    };
    matches!(state(saved), State::Readable(_))
}

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
    choose_flavour(state(&snapshot.nft), state(&snapshot.legacy))
}

/// What is known of one kind of iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Readable(Contents),
    /// The kernel may have rules of this kind, but they cannot be read, and why.
    Unreadable(String),
    /// The programs or the kernel's part are missing, and why: there are no rules.
    Missing(String),
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

fn state(saved: &SavedTables) -> State {
    let mut contents = Contents::default();
    if [&saved.ipv4, &saved.ipv6]
        .into_iter()
        .flatten()
        .any(|text| is_incompatible(text, FILTER))
    {
        return State::Unreadable(format!("table {FILTER} has rules that nft made"));
    }
    match &saved.ipv4 {
        Ok(text) => contents.add(text),
        Err(error) if error.is_missing_iptables() => return State::Missing(error.to_string()),
        Err(error) => return State::Unreadable(error.to_string()),
    }
    // IPv6 may be missing
    match &saved.ipv6 {
        Err(error) if error.is_unprintable() => return State::Unreadable(error.to_string()),
        _ => contents.add(saved.of(Family::V6).unwrap_or_default()),
    }
    State::Readable(contents)
}

fn choose_flavour(nft: State, legacy: State) -> Result<Detected, DataplaneError> {
    use State::{Missing, Readable, Unreadable};
    let unreadable = |flavour, message| DataplaneError::IptablesUnreadable { flavour, message };
    let (flavour, reason) = match (nft, legacy) {
        (Missing(nft), Missing(legacy)) => {
            return Err(DataplaneError::NoIptables { nft, legacy });
        }
        (Readable(nft), Missing(error)) => (
            Flavour::Nft,
            format!("it carries {nft}; iptables-legacy does not work: {error}"),
        ),
        (Missing(error), Readable(legacy)) => (
            Flavour::Legacy,
            format!("it carries {legacy}; iptables-nft does not work: {error}"),
        ),
        // without NET_RAW, iptables-legacy can be read only where it has no tables
        (Readable(nft), Unreadable(error)) if nft.kube_chains > 0 => (
            Flavour::Nft,
            format!("it carries {nft}; iptables-legacy cannot be read: {error}"),
        ),
        (Unreadable(error), Readable(legacy)) if legacy.kube_chains > 0 => (
            Flavour::Legacy,
            format!("it carries {legacy}; iptables-nft cannot be read: {error}"),
        ),
        (Unreadable(message), _) => return Err(unreadable(Flavour::Nft, message)),
        (_, Unreadable(message)) => return Err(unreadable(Flavour::Legacy, message)),
        (Readable(nft), Readable(legacy)) => choose_by_rules(nft, legacy)?,
    };
    Ok(Detected { flavour, reason })
}

fn choose_by_rules(nft: Contents, legacy: Contents) -> Result<(Flavour, String), DataplaneError> {
    let chosen = match (nft.is_empty(), legacy.is_empty()) {
        (true, true) => (
            Flavour::Nft,
            "neither kind carries rules, and nft is the default".to_owned(),
        ),
        (false, true) => (
            Flavour::Nft,
            format!("it carries {nft}; iptables-legacy is empty"),
        ),
        (true, false) => (
            Flavour::Legacy,
            format!("it carries {legacy}; iptables-nft is empty"),
        ),
        // kubelet and kube-proxy use the one that counts for Services
        (false, false) => match (nft.kube_chains > 0, legacy.kube_chains > 0) {
            (true, false) => (
                Flavour::Nft,
                format!("it carries {nft}; iptables-legacy has {legacy}"),
            ),
            (false, true) => (
                Flavour::Legacy,
                format!("it carries {legacy}; iptables-nft has {nft}"),
            ),
            _ => {
                let (nft, legacy) = (nft.to_string(), legacy.to_string());
                return Err(DataplaneError::BothFlavours { nft, legacy });
            }
        },
    };
    Ok(chosen)
}

#[cfg(test)]
mod tests;
