//! Finds TCP flows to mapped ports that no reply answers.
//!
//! A reply that leaves the node past netfilter, and a client that a `NetworkPolicy` drops, look the same
//! here. So this is shown and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_shared::{Mapping, Protocol};

use super::entry::{self, Entry};
use super::{MAX_READINGS, StaleFlows};
use crate::family::Family;
use crate::netlink::{Encoder, Header, NetlinkError, Options, Socket};

/// The TCP flows to mapped ports that no reply answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unanswered {
    /// How many flows there are.
    pub flows: usize,
    /// The mappings of which all flows are unanswered, from two sources or more.
    pub mappings: BTreeSet<Mapping>,
}

/// The flows of one mapping. One source is kept, however many there are: a port scan has many.
#[derive(Debug, Default)]
struct Seen {
    source: Option<IpAddr>,
    several_sources: bool,
    answered: bool,
}

impl StaleFlows {
    /// Reads the unanswered flows to these mappings.
    ///
    /// Linux 5.15 and later select them, which takes some milliseconds. Earlier kernels send all TCP flows
    /// of the node, about 1 s for a million, so the caller pauses between reads. An answer that takes
    /// longer than the time limit of a socket is an error.
    pub fn unanswered(&self, mappings: &BTreeSet<Mapping>) -> Result<Unanswered, NetlinkError> {
        let mut found = Unanswered::default();
        let host_addresses = self.0.left.lock().host_addresses.clone();
        for family in Family::ALL {
            let mappings = mappings.iter().filter(|mapping| {
                mapping.protocol == Protocol::Tcp && Family::of(mapping.pod_ip) == family
            });
            let mappings: BTreeMap<_, _> = mappings.map(|m| (endpoints(m), m)).collect();
            if mappings.is_empty() {
                continue;
            }
            let mut socket = Socket::open(Options::default())?;
            let mut seen: BTreeMap<_, Seen> = BTreeMap::new();
            let (header, body) = entry::list_unanswered(family);
            read(&mut socket, header, body, |flow| {
                let to = (flow.port, flow.answered_by, flow.answering_port);
                if host_addresses.contains(&flow.dst) && mappings.contains_key(&to) {
                    found.flows += usize::from(!flow.is_answered);
                    seen.entry(to).or_default().add(&flow);
                }
            })?;
            seen.retain(|_, seen| seen.several_sources && !seen.answered);
            // more ports than this are a matter of the node, and the first ones show it
            for (to, _) in seen.into_iter().take(MAX_READINGS) {
                let mut answered = false;
                let (header, body) = entry::list(family, Protocol::Tcp, Some(to.0));
                read(&mut socket, header, body, |flow| {
                    answered |= flow.is_answered
                        && to == (flow.port, flow.answered_by, flow.answering_port);
                })?;
                let mapping = mappings.get(&to).filter(|_| !answered);
                found
                    .mappings
                    .extend(mapping.map(|mapping| (*mapping).clone()));
            }
        }
        Ok(found)
    }
}

impl Seen {
    fn add(&mut self, flow: &Entry) {
        self.answered |= flow.is_answered;
        let first = *self.source.get_or_insert(flow.source);
        self.several_sources |= first != flow.source;
    }
}

/// Returns the host port of a mapping, and the pod's address and port.
fn endpoints(mapping: &Mapping) -> (u16, IpAddr, u16) {
    let (host, pod) = (mapping.host_port, mapping.container_port);
    (host.get(), mapping.pod_ip, pod.get())
}

fn read(
    socket: &mut Socket,
    header: Header,
    body: impl FnOnce(&mut Encoder),
    mut each: impl FnMut(Entry),
) -> Result<(), NetlinkError> {
    let listed = socket.dump(header, body, |message| {
        if let Some(entry) = Entry::read(message, Protocol::Tcp) {
            each(entry);
        }
    });
    match listed {
        // the next read is complete
        Err(NetlinkError::Interrupted) => Ok(()),
        listed => listed,
    }
}
