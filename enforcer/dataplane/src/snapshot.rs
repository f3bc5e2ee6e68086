//! Everything that both kinds of iptables have, read once at the start.
//!
//! The choice of the kind, the mappings of an earlier run, the first state of the driver and the
//! FORWARD chains all come from this one read: four programs, which run at the same time.

use std::panic::resume_unwind;
use std::thread;

use super::exec::Tools;
use super::flavour::Flavour;
use super::iptables::SavedTables;

/// All tables of both kinds of iptables.
#[derive(Debug)]
pub struct Snapshot {
    /// Of iptables-nft.
    pub(super) nft: SavedTables,
    /// Of iptables-legacy.
    pub(super) legacy: SavedTables,
}

impl Snapshot {
    /// Runs the programs in the network namespace of the caller. Changes nothing, and blocks.
    #[must_use]
    pub fn read(tools: &Tools) -> Self {
        thread::scope(|scope| {
            let nft = scope.spawn(|| SavedTables::read(Flavour::Nft, tools));
            let legacy = SavedTables::read(Flavour::Legacy, tools);
            let nft = nft.join().unwrap_or_else(|panic| resume_unwind(panic));
            Self { nft, legacy }
        })
    }
}
