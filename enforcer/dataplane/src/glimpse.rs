//! What the node's rules say at first sight, before anything is decided: what the kernel tells by
//! itself within milliseconds, and each kind of iptables, read once.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::thread;

use portmapping_shared::{HostPort, Protocol};

use super::exec::Tools;
use super::iptables::commands::Commands;
use super::iptables::noted;
use super::iptables::save::ports_in;
use super::iptables::{Family, Flavour};
use super::netlink::{Options, Socket};
use super::{DataplaneError, nftables};

/// What both kinds of iptables carry.
#[derive(Debug)]
pub struct Glimpse {
    /// Of iptables-nft.
    pub nft: Saved,
    /// Of iptables-legacy.
    pub legacy: Saved,
}

impl Glimpse {
    /// Changes nothing.
    #[must_use]
    pub fn take(tools: &Tools) -> Self {
        Self {
            nft: Saved::read(Flavour::Nft, tools),
            legacy: Saved::read(Flavour::Legacy, tools),
        }
    }
}

/// All tables of one kind of iptables, as text.
#[derive(Debug)]
pub struct Saved {
    pub(super) ipv4: Result<String, DataplaneError>,
    /// None on a node without IPv6, which says nothing about the rest.
    pub(super) ipv6: Option<String>,
}

impl Saved {
    /// Reads both address families at once; changes nothing.
    #[must_use]
    pub fn read(flavour: Flavour, tools: &Tools) -> Self {
        let read = |family| Commands::new(family, flavour, tools.clone()).save_all();
        let [ipv4, ipv6] = thread::scope(|scope| {
            let reading = Family::ALL.map(|family| scope.spawn(move || read(family)));
            reading.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        Self {
            ipv4,
            ipv6: ipv6.ok(),
        }
    }

    /// The host ports that rules of ours lead from. It is more credulous than a driver: holding a
    /// port in vain does no harm.
    #[must_use]
    pub fn mapped_ports(&self) -> BTreeSet<(Protocol, HostPort)> {
        let texts = self.ipv4.as_deref().ok().into_iter();
        let texts = texts.chain(self.ipv6.as_deref());
        texts.flat_map(ports_in).collect()
    }
}

/// The host ports that are mapped as far as no program is needed to see it: those in our nftables
/// table, and those whose owners iptables-nft notes. All others are in what is [`Saved`].
#[must_use]
pub fn ports_at_once() -> BTreeSet<(Protocol, HostPort)> {
    match Socket::open(Options::default()) {
        Ok(mut socket) => {
            let mut ports = nftables::ports(&mut socket);
            ports.extend(noted::ports(&mut socket));
            ports
        }
        Err(error) => {
            tracing::debug!(%error, "nothing can be seen without a program");
            BTreeSet::new()
        }
    }
}
