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
//! This also helps a client that sends too early: its entry is deleted some milliseconds after the
//! rules are made, and its next datagram creates a new entry. A rule that refuses datagrams to
//! unmapped ports would prevent the entry. But it would have to come before every accepting rule of
//! other programs, and it cannot tell which port of the range another process uses.
//!
//! A filter in the kernel cannot select these flows: a flow that the node only forwards to the same
//! port number is not ours. So the kernel lists the entries of each changed port, and those that
//! contradict the rules are deleted one by one.

mod entry;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_shared::{Mapping, Protocol};
use rustix::io::Errno;

use super::family::Family;
use super::netlink::{NetlinkError, Options, Socket};
use entry::Entry;

/// If more ports than this change, one read of all entries of the protocol replaces the reads per
/// port. A filtered read costs the kernel a ninth of a full one.
const MAX_READINGS: usize = 8;
/// How often clearing the entries of a change is tried, because an answer of the kernel can be
/// lost.
const TRIES: usize = 2;

/// Deletes stale entries over netlink.
#[derive(Debug, Default)]
pub(super) struct Conntrack {
    /// Opened at the first change, in the network namespace of the caller.
    socket: Option<Socket>,
    failures: u64,
    /// The current host addresses.
    host_addresses: BTreeSet<IpAddr>,
    /// All host addresses since the start: flows through an earlier one may still exist.
    ever_host_addresses: BTreeSet<IpAddr>,
}

impl Conntrack {
    /// Creates the value; the socket is opened at the first change.
    pub(super) fn new(host_addresses: &BTreeSet<IpAddr>) -> Self {
        let mut conntrack = Self::default();
        conntrack.set_host_addresses(host_addresses);
        conntrack
    }

    /// Sets the addresses at which mappings answer. Flows to other addresses are not ours.
    pub(super) fn set_host_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.host_addresses.clone_from(addresses);
        self.ever_host_addresses.extend(addresses);
    }

    /// Returns how often listing or deleting entries failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Deletes the entries of a family that contradict changed rules, which are in the kernel
    /// already. Failures are logged and counted; the rules stay, and stale entries time out.
    pub(super) fn clear(&mut self, family: Family, removed: &[&Mapping], created: &[&Mapping]) {
        for protocol in Protocol::ALL {
            let change = Change::new(protocol, removed, created);
            let mut outcome = Ok(());
            for _ in 0..TRIES {
                outcome = self.clear_protocol(family, protocol, &change);
                if outcome.is_ok() {
                    break;
                }
            }
            if let Err(error) = outcome {
                self.failures += 1;
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    %family,
                    %protocol,
                    "stale conntrack entries could not be deleted; clients may reach the previous \
                     destination until their flows time out"
                );
            }
        }
    }

    fn clear_protocol(
        &mut self,
        family: Family,
        protocol: Protocol,
        change: &Change<'_>,
    ) -> Result<(), NetlinkError> {
        let ports = change.ports(protocol);
        if ports.is_empty() {
            return Ok(());
        }
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(Socket::open(Options::default())?),
        };
        let readings: Vec<Option<u16>> = if ports.len() > MAX_READINGS {
            vec![None]
        } else {
            ports.iter().copied().map(Some).collect()
        };
        let mut found = Vec::new();
        for port in readings {
            let (header, body) = entry::list(family, protocol, port);
            let listed = socket.dump(header, body, |message| {
                let entry = Entry::read(message, protocol);
                found.extend(entry.filter(|entry| ports.contains(&entry.port)));
            });
            match listed {
                // an interrupted dump is complete enough: a flow that begins now follows the new
                // rules
                Ok(()) | Err(NetlinkError::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        let (current, ever) = (&self.host_addresses, &self.ever_host_addresses);
        for entry in found {
            if !change.contradicts(&entry, current, ever) {
                continue;
            }
            let (header, body) = entry.delete(family);
            match socket.request(header, body, |_| {}) {
                Ok(()) => {}
                // the entry has timed out already
                Err(error) if error.is_refusal(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The mappings of one protocol and family that a transaction changed, by host port.
struct Change<'a> {
    removed: ByPort<'a>,
    created: ByPort<'a>,
}

type ByPort<'a> = BTreeMap<u16, Vec<&'a Mapping>>;

impl<'a> Change<'a> {
    fn new(protocol: Protocol, removed: &[&'a Mapping], created: &[&'a Mapping]) -> Self {
        let by_port = |mappings: &[&'a Mapping]| {
            let mut by_port = ByPort::new();
            for mapping in mappings.iter().filter(|m| m.protocol == protocol) {
                by_port
                    .entry(mapping.host_port.get())
                    .or_default()
                    .push(*mapping);
            }
            by_port
        };
        Self {
            removed: by_port(removed),
            created: by_port(created),
        }
    }

    /// Returns the ports whose entries may be stale. A new mapping leaves TCP entries alone.
    fn ports(&self, protocol: Protocol) -> BTreeSet<u16> {
        let created = self.created.keys().filter(|_| protocol != Protocol::Tcp);
        self.removed.keys().chain(created).copied().collect()
    }

    /// Returns whether an entry contradicts the rules. Flows to other addresses than host addresses,
    /// such as those of a Service, are not ours.
    fn contradicts(
        &self,
        entry: &Entry,
        current: &BTreeSet<IpAddr>,
        ever: &BTreeSet<IpAddr>,
    ) -> bool {
        ever.contains(&entry.dst) && self.outlived_by(entry)
            || current.contains(&entry.dst) && self.bypassed_by(entry)
    }

    /// Returns whether an entry sends packets to a pod that lost the port and did not get it again.
    fn outlived_by(&self, entry: &Entry) -> bool {
        at(&self.removed, entry).any(|mapping| entry.leads_to(mapping))
            && !at(&self.created, entry).any(|mapping| entry.leads_to(mapping))
            && !(entry.protocol == Protocol::Tcp && entry.is_established)
    }

    /// Returns whether an entry sends packets to another endpoint than the pod that has the port
    /// now. Flows that the node forwards to the same port of another host look the same.
    fn bypassed_by(&self, entry: &Entry) -> bool {
        let concerns = |mapping: &Mapping| mapping.host_ip.is_none_or(|ip| ip == entry.dst);
        entry.protocol != Protocol::Tcp
            && at(&self.created, entry).any(concerns)
            && !at(&self.created, entry).any(|mapping| entry.leads_to(mapping))
    }
}

/// Returns the mappings of the port that an entry was sent to.
fn at<'a>(mappings: &ByPort<'a>, entry: &Entry) -> impl Iterator<Item = &'a Mapping> {
    mappings.get(&entry.port).into_iter().flatten().copied()
}

#[cfg(test)]
mod tests;
