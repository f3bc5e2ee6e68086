//! What an earlier run left in the kernel, and all that both kinds of iptables have: read once at the
//! start.
//!
//! The ports to be held, the choice of the backend, the first state of its driver, the mappings that move
//! to it and the FORWARD chains all come from this one read: four programs, which run at the same time,
//! and our nftables table.

use std::net::IpAddr;
use std::panic::resume_unwind;
use std::thread;

use portmapping_shared::Mapping;

use super::backend::Backend;
use super::exec::Tools;
use super::flavour::Flavour;
use super::iptables::{self, SavedTables};
use super::settings::Settings;
use super::{DataplaneError, Observed, nftables};

/// The rules of the network namespace at the start.
#[derive(Debug)]
pub struct Snapshot {
    /// All tables of iptables-nft.
    pub(super) nft: SavedTables,
    /// All tables of iptables-legacy.
    pub(super) legacy: SavedTables,
    /// What each backend has of ours; none for one without a rule of ours.
    pub(super) leftovers: Vec<(Backend, Observed)>,
}

impl Snapshot {
    /// Runs the programs in the network namespace of the caller. Changes nothing, and blocks.
    #[must_use]
    pub fn read(tools: &Tools, settings: &Settings) -> Self {
        let (nft, legacy) = thread::scope(|scope| {
            let nft = scope.spawn(|| SavedTables::read(Flavour::Nft, tools));
            let legacy = SavedTables::read(Flavour::Legacy, tools);
            let nft = nft.join().unwrap_or_else(|panic| resume_unwind(panic));
            (nft, legacy)
        });
        let of_tables = |saved: &SavedTables| {
            let found = iptables::leftovers(saved, settings)?;
            Some((saved.flavour.into(), found))
        };
        let of_table = nftables::leftovers(settings).map(|found| (Backend::Nftables, found));
        let leftovers = [&nft, &legacy].into_iter().filter_map(of_tables);
        let leftovers = leftovers.chain(of_table).collect();
        Self {
            nft,
            legacy,
            leftovers,
        }
    }

    /// Returns why a program did not run to its end, if one did not. What it would have printed is not known:
    /// rules of ours there would stay, and lead to addresses that others get.
    #[must_use]
    pub fn interrupted(&self) -> Option<&DataplaneError> {
        let tables = [&self.nft, &self.legacy].into_iter();
        let mut texts = tables.flat_map(|saved| [&saved.ipv4, &saved.ipv6]);
        texts.find_map(|text| text.as_ref().err().filter(|error| error.is_passing()))
    }

    /// Returns every mapping that the rules of any backend have. Needs no choice of a backend, so that
    /// ports are held before one is opened.
    pub fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        let each = self.leftovers.iter();
        each.flat_map(|(_, found)| &found.mappings)
    }

    /// Returns the addresses at which the rules of any backend answer.
    pub(super) fn host_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let each = self.leftovers.iter();
        let of_rules = each.flat_map(|(_, found)| &found.host_addresses);
        let of_mappings = self.mappings().filter_map(|mapping| mapping.host_ip);
        of_rules.copied().chain(of_mappings)
    }
}
