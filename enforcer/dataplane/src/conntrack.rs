//! Deletes conntrack entries of flows that outlive the rule that translated them.
//!
//! A UDP flow keeps the destination of its first datagram while it is in use. This is the pod that
//! had the port then, or the node itself if the sender began before the mapping existed. After a
//! change of rules, the UDP and SCTP entries that contradict the rules are therefore deleted.
//!
//! TCP entries stay, because the peers of a TCP connection detect the change themselves. Only an
//! entry whose handshake is not complete is deleted with its mapping: the client repeats its SYN,
//! and the next pod with the same address would accept it.
//!
//! Listing takes milliseconds, because the kernel walks its whole hash table, however few entries
//! there are. So a change of rules only records what it left behind. [`StaleFlows::clear`] runs right
//! after it, without keeping the next change waiting, and clears what all changes have left by then.
//!
//! This also helps a client that sends too early: its entry is deleted some milliseconds after the
//! rules are made, and its next datagram creates a new entry. A rule that refuses datagrams to
//! unmapped ports would prevent the entry. But it would have to come before every accepting rule of
//! other programs, and it cannot tell which port of the range another process uses.
//!
//! A filter in the kernel cannot select these flows: a flow that the node only forwards to the same
//! port number is not ours. So the kernel lists the entries of each changed port, and those that
//! contradict the rules are deleted one by one.

mod changed;
mod entry;
mod replies;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portmapping_shared::{Mapping, PortKey, Protocol};
use rustix::io::Errno;

use super::family::Family;
use super::netlink::{NetlinkError, Options, Socket};
use changed::ChangedMappings;
use entry::Entry;
pub use replies::Unanswered;

/// If more ports than this change, one read of all entries of the protocol replaces the reads per
/// port. A filtered read costs the kernel a ninth of a full one.
const MAX_READINGS: usize = 8;
/// Most entries that are kept and deleted at once, 3 MiB of them.
const AT_ONCE: usize = 8_192;
/// Most times that stale entries of one port are listed and deleted, so that other ports get their turn.
const ROUNDS: usize = 16;
/// How often clearing the entries of a change is tried at once, because an answer of the kernel can be
/// lost.
const TRIES: usize = 2;
/// Most mappings that wait for another try.
const MOST_WAITING: usize = 16_384;
/// The shortest pause before another try.
const RETRY: Duration = Duration::from_secs(5);
/// The pause lasts this many times as long as the try took: kernels before 5.8 list all connections of the
/// node, and that may take 1 % of a CPU.
const REST: u32 = 99;

/// The conntrack entries that changed mappings have left behind. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct StaleFlows(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    left: Mutex<Left>,
    /// Opened at the first change, in the network namespace of the caller. Locked by the one thread
    /// that clears.
    socket: Mutex<Option<Socket>>,
}

/// What changes have left since the last time. There is one mapping per port and address, so it
/// cannot outgrow the port range for long.
#[derive(Clone, Debug, Default)]
struct Left {
    removed: BTreeSet<Mapping>,
    created: BTreeSet<Mapping>,
    /// Ports without a mapping that may have had one before the start.
    unmapped: BTreeSet<PortKey>,
    /// The current host addresses.
    host_addresses: BTreeSet<IpAddr>,
    /// All host addresses since the start: flows through an earlier one may still exist.
    ever_host_addresses: BTreeSet<IpAddr>,
    /// Where the last try failed, which was told.
    failing: BTreeSet<(Family, Protocol)>,
    /// Earliest time of the next try, unless a change comes before.
    retry_at: Option<Instant>,
}

impl StaleFlows {
    pub(super) fn new(host_addresses: &BTreeSet<IpAddr>) -> Self {
        let flows = Self::default();
        flows.set_host_addresses(host_addresses);
        flows
    }

    /// Sets the addresses at which mappings answer. Flows to other addresses are not ours.
    pub(super) fn set_host_addresses(&self, addresses: &BTreeSet<IpAddr>) {
        let mut left = self.0.left.lock();
        left.host_addresses.clone_from(addresses);
        left.ever_host_addresses.extend(addresses);
    }

    /// Records a change of rules, which is in the kernel already.
    pub(super) fn record<'a>(
        &self,
        removed: impl IntoIterator<Item = &'a Mapping>,
        created: impl IntoIterator<Item = &'a Mapping>,
    ) {
        self.0.left.lock().add(removed, created);
    }

    /// Records mappings that another program made: it may have ended before it cleared.
    pub fn found<'a>(&self, mappings: impl IntoIterator<Item = &'a Mapping>) {
        self.record([], mappings);
    }

    /// Records ports that the keeper holds and that have no mapping. The enforcer that removed it may have
    /// ended before it cleared.
    pub fn found_unmapped(&self, ports: impl IntoIterator<Item = PortKey>) {
        self.0.left.lock().unmapped.extend(ports);
    }

    /// Whether there is something to clear now.
    #[must_use]
    pub fn is_due(&self) -> bool {
        let left = self.0.left.lock();
        !left.is_empty() && left.retry_at.is_none_or(|at| at <= Instant::now())
    }

    /// Deletes the entries that contradict the rules. Returns how often that failed. Failures are
    /// logged; the rules stay, and the next call tries again.
    ///
    /// Blocks for some milliseconds, and the next change of rules need not wait for it. If another thread
    /// clears already, that thread clears everything, and this call returns at once.
    #[must_use = "each failure is counted in a metric"]
    pub fn clear(&self) -> u64 {
        let mut failures = 0;
        // checked after the lock is free again: what another thread recorded while this one had it is
        // cleared by this one
        while failures == 0 && !self.0.left.lock().is_empty() {
            let Some(mut socket) = self.0.socket.try_lock() else {
                break;
            };
            let begun = Instant::now();
            let left = self.0.left.lock().take();
            let mut failed = Left::default();
            for family in Family::ALL {
                failures += left.clear(&mut socket, family, &mut failed);
            }
            if failures > 0 {
                *socket = None;
                let pause = RETRY.max(begun.elapsed() * REST);
                self.0.left.lock().put_back(failed, begun + pause);
            }
        }
        failures
    }
}

impl Left {
    /// Adds a change. A mapping that comes back keeps its flows.
    fn add<'a>(
        &mut self,
        removed: impl IntoIterator<Item = &'a Mapping>,
        created: impl IntoIterator<Item = &'a Mapping>,
    ) {
        for mapping in removed {
            self.created.remove(mapping);
            self.removed.insert(mapping.clone());
        }
        for mapping in created {
            self.unmapped.remove(&(mapping.protocol, mapping.host_port));
            self.removed.remove(mapping);
            self.created.insert(mapping.clone());
        }
    }

    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.created.is_empty() && self.unmapped.is_empty()
    }

    fn take(&mut self) -> Self {
        let taken = self.clone();
        self.forget();
        taken
    }

    fn forget(&mut self) {
        self.removed.clear();
        self.created.clear();
        self.unmapped.clear();
        self.failing.clear();
        self.retry_at = None;
    }

    /// What failed is tried again, unless a later change says otherwise. A kernel that fails for good costs
    /// no more than [`MOST_WAITING`]; removed mappings, whose addresses other pods may get, come first.
    fn put_back(&mut self, failed: Self, at: Instant) {
        let later = self.take();
        (self.removed, self.created) = (failed.removed, failed.created);
        self.unmapped = failed.unmapped;
        self.add(&later.removed, &later.created);
        if self.removed.len() + self.created.len() > MOST_WAITING {
            self.created.clear();
        }
        if self.removed.len() > MOST_WAITING {
            self.removed.clear();
        }
        (self.failing, self.retry_at) = (failed.failing, Some(at));
    }

    /// Deletes the entries of a family; returns how many protocols failed, and adds their mappings to `failed`.
    fn clear(&self, socket: &mut Option<Socket>, family: Family, failed: &mut Self) -> u64 {
        let of_family = |mapping: &&Mapping| Family::of(mapping.pod_ip) == family;
        let removed: Vec<&Mapping> = self.removed.iter().filter(of_family).collect();
        let created: Vec<&Mapping> = self.created.iter().filter(of_family).collect();
        let mut failures = 0;
        for protocol in Protocol::ALL {
            let unmapped = self.unmapped.iter().filter(|(of, _)| *of == protocol);
            let change = ChangedMappings::new(protocol, &removed, &created, unmapped.clone());
            let mut outcome = Ok(());
            for _ in 0..TRIES {
                outcome = self.clear_protocol(socket, family, protocol, &change);
                if outcome.is_ok() {
                    break;
                }
            }
            if let Err(error) = outcome {
                failures += 1;
                let of_protocol = |mapping: &&&Mapping| mapping.protocol == protocol;
                let (removed, created) = (removed.iter(), created.iter());
                failed.add(
                    removed.filter(of_protocol).copied(),
                    created.filter(of_protocol).copied(),
                );
                failed.unmapped.extend(unmapped);
                failed.failing.insert((family, protocol));
                let error: &dyn std::error::Error = &error;
                if self.failing.contains(&(family, protocol)) {
                    tracing::debug!(error, %family, %protocol, "stale conntrack entries remain");
                    continue;
                }
                tracing::warn!(
                    error,
                    %family,
                    %protocol,
                    "stale conntrack entries could not be deleted; clients may reach the previous \
                     destination until the enforcer succeeds, or until their flows time out"
                );
            }
        }
        failures
    }

    fn clear_protocol(
        &self,
        socket: &mut Option<Socket>,
        family: Family,
        protocol: Protocol,
        change: &ChangedMappings<'_>,
    ) -> Result<(), NetlinkError> {
        let ports = change.ports(protocol);
        if ports.is_empty() {
            return Ok(());
        }
        let socket = match socket {
            Some(socket) => socket,
            none => none.insert(Socket::open(Options::default())?),
        };
        let readings: Vec<Option<u16>> = if ports.len() > MAX_READINGS {
            vec![None]
        } else {
            ports.iter().copied().map(Some).collect()
        };
        let (current, ever) = (&self.host_addresses, &self.ever_host_addresses);
        let is_stale =
            |entry: &Entry| ports.contains(&entry.port) && change.contradicts(entry, current, ever);
        for port in readings {
            for _ in 0..ROUNDS {
                let is_all = clear_some(socket, family, protocol, port, is_stale)?;
                if is_all {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Deletes stale entries, at most [`AT_ONCE`]; returns whether these were all. Any pod of the node can make
/// entries of other flows to the same port number, as many as the kernel has room for: they are not kept.
/// One that cannot be deleted, such as a flow that a network card forwards, keeps no other.
fn clear_some(
    socket: &mut Socket,
    family: Family,
    protocol: Protocol,
    port: Option<u16>,
    is_stale: impl Fn(&Entry) -> bool,
) -> Result<bool, NetlinkError> {
    let mut found = Vec::new();
    let mut is_all = true;
    let (header, body) = entry::list(family, protocol, port);
    let listed = socket.dump(header, body, |message| {
        let Some(entry) = Entry::read(message, protocol).filter(|entry| is_stale(entry)) else {
            return;
        };
        if found.len() < AT_ONCE {
            found.push(entry);
        } else {
            is_all = false;
        }
    });
    match listed {
        // an interrupted dump is complete enough: a flow that begins now follows the new rules
        Ok(()) | Err(NetlinkError::Interrupted) => {}
        Err(error) => return Err(error),
    }
    let mut failed = None;
    for entry in found {
        let (header, body) = entry.delete(family);
        match socket.request(header, body, |_| {}) {
            Ok(()) => {}
            // the entry has timed out already
            Err(error) if error.is_refusal(Errno::NOENT) => {}
            Err(error @ NetlinkError::Refused(_)) => failed = Some(error),
            Err(error) => return Err(error),
        }
    }
    failed.map_or(Ok(is_all), Err)
}

#[cfg(test)]
mod tests;
