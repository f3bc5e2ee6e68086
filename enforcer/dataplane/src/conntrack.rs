//! Deletes conntrack entries of flows that outlive the rule that translated them.
//!
//! A UDP flow keeps the destination of its first datagram while it is in use. This is the pod that
//! had the port then, or the node itself if the sender began before the mapping existed. After a
//! change of rules, the UDP and SCTP entries that contradict the rules are therefore deleted. TCP
//! entries stay, because the peers of a TCP connection detect the change themselves.
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
use std::net::{IpAddr, UdpSocket};

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
}

impl Conntrack {
    /// Creates the value; the socket is opened at the first change.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Returns how often listing or deleting entries failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Deletes the entries of a family that contradict changed rules, which are in the kernel
    /// already. Failures are logged and counted; the rules stay, and stale entries time out.
    pub(super) fn clear(&mut self, family: Family, removed: &[&Mapping], created: &[&Mapping]) {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
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
        let ports = change.ports();
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
        let mut local = BTreeMap::new();
        for entry in found {
            let mut is_local = |ip| *local.entry(ip).or_insert_with(|| is_local(ip));
            if !change.contradicts(&entry, &mut is_local) {
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

    fn ports(&self) -> BTreeSet<u16> {
        self.removed
            .keys()
            .chain(self.created.keys())
            .copied()
            .collect()
    }

    /// Returns whether an entry sends packets to a pod that lost the port, or to another
    /// destination than the pod that has the port now.
    fn contradicts(&self, entry: &Entry, is_local: impl FnOnce(IpAddr) -> bool) -> bool {
        let at = |mappings: &'_ ByPort<'a>| mappings.get(&entry.port).cloned().unwrap_or_default();
        let (removed, created) = (at(&self.removed), at(&self.created));
        let leads_to = |mapping: &&Mapping| {
            entry.answered_by == mapping.pod_ip
                && entry.answering_port == mapping.container_port.get()
        };
        let concerns = |mapping: &&Mapping| mapping.host_ip.is_none_or(|ip| ip == entry.dst);
        if created.iter().any(leads_to) {
            return false;
        }
        // flows that the node forwards to the same port of another host are not ours
        removed.iter().any(leads_to) || (created.iter().any(concerns) && is_local(entry.dst))
    }
}

/// Returns whether this node has the address. Only then can a socket be bound to it.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests;
