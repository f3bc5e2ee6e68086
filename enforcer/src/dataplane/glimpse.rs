//! What the node's rules say at first sight, before anything is decided: all kinds of iptables are
//! read at once, each once, and our nftables table meanwhile.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::thread;

use portmapping_shared::{HostPort, Protocol};

use super::exec::Tools;
use super::iptables::commands::Commands;
use super::iptables::save::ports_in;
use super::iptables::{Family, Flavour};
use super::{DataplaneError, nftables};

/// What both kinds of iptables carry.
#[derive(Debug)]
pub struct Glimpse {
    pub(super) nft: Saved,
    pub(super) legacy: Saved,
    /// The host ports in our nftables table.
    in_table: BTreeSet<(Protocol, HostPort)>,
}

/// All tables of one kind of iptables, as text.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) ipv4: Result<String, DataplaneError>,
    /// None on a node without IPv6, which says nothing about the rest.
    pub(super) ipv6: Option<String>,
}

impl Glimpse {
    /// Changes nothing.
    #[must_use]
    pub fn take(tools: &Tools) -> Self {
        let read = |flavour, family| Commands::new(family, flavour, tools.clone()).save_all();
        thread::scope(|scope| {
            let reading = [Flavour::Nft, Flavour::Legacy].map(|flavour| {
                Family::ALL.map(|family| scope.spawn(move || read(flavour, family)))
            });
            let in_table = nftables::ports();
            let [nft, legacy] = reading.map(|families| {
                let [ipv4, ipv6] = families
                    .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
                Saved {
                    ipv4,
                    ipv6: ipv6.ok(),
                }
            });
            Self {
                nft,
                legacy,
                in_table,
            }
        })
    }

    /// The host ports that rules of ours lead from, whichever kind they are of. It is more
    /// credulous than a driver: holding a port in vain does no harm.
    #[must_use]
    pub fn mapped_ports(&self) -> BTreeSet<(Protocol, HostPort)> {
        let texts = [&self.nft, &self.legacy].into_iter().flat_map(|saved| {
            let ipv4 = saved.ipv4.as_deref().ok();
            ipv4.into_iter().chain(saved.ipv6.as_deref())
        });
        texts
            .flat_map(ports_in)
            .chain(self.in_table.iter().copied())
            .collect()
    }
}
