//! Connection tracking: flows that outlive the rule that steered them.
//!
//! A datagram flow stays with the pod it was first sent to, or with nobody where its sender began
//! before the mapping existed, for as long as it is used. So once rules have changed, the UDP and
//! SCTP entries that contradict them are deleted. TCP is left alone: its peers notice.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};

use portmapping_shared::{Mapping, Protocol};

use super::exec::{ExecError, Tools};
use super::iptables::Family;

const PROGRAM: &str = "conntrack";
/// What `conntrack` says besides its exit status 1 when it found nothing to delete.
const NOTHING_DELETED: &str = "0 flow entries";

/// Deletes stale entries through the `conntrack` program.
#[derive(Debug)]
pub struct Conntrack {
    tools: Tools,
    failures: u64,
    said_missing: bool,
}

impl Conntrack {
    /// Nothing is run before the first change.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self {
            tools,
            failures: 0,
            said_missing: false,
        }
    }

    /// How often entries could not be looked for; without the program, at every change.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Deletes the entries of a family that contradict a change of rules, which is in the kernel
    /// already. Failures are logged and counted: the rules stand, and stale entries time out.
    pub(super) fn clear(&mut self, family: Family, removed: &[&Mapping], created: &[&Mapping]) {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let of_protocol = |mapping: &&&Mapping| mapping.protocol == protocol;
            let change = Change {
                removed: removed.iter().filter(of_protocol).copied().collect(),
                created: created.iter().filter(of_protocol).copied().collect(),
            };
            if let Err(error) = self.clear_protocol(family, protocol, &change) {
                self.failures += 1;
                self.complain(&error);
            }
        }
    }

    fn clear_protocol(
        &self,
        family: Family,
        protocol: Protocol,
        change: &Change<'_>,
    ) -> Result<(), ClearError> {
        let ports = change.ports();
        let Some(port) = ports.first() else {
            return Ok(());
        };
        let (family, protocol) = (family_name(family), protocol.as_kernel_str());
        let port = port.to_string();
        let mut list = vec!["-L", "-f", family, "-p", protocol];
        if ports.len() == 1 {
            list.extend(["--orig-port-dst", &port]);
        }
        let text = self.run(&list)?;
        let stale: BTreeSet<Entry> = text
            .lines()
            .filter_map(Entry::parse)
            .filter(|entry| change.contradicts(entry, is_local))
            .collect();
        for entry in stale {
            let (dst, port, from) = (
                entry.dst.to_string(),
                entry.port.to_string(),
                entry.answered_by.to_string(),
            );
            let mut delete = vec!["-D", "-f", family, "-p", protocol];
            delete.extend([
                "--orig-dst",
                &dst,
                "--orig-port-dst",
                &port,
                "--reply-src",
                &from,
            ]);
            self.run(&delete)?;
        }
        Ok(())
    }

    fn run(&self, args: &[&str]) -> Result<String, ClearError> {
        let finished = self.tools.run(PROGRAM, args, &[])?;
        if finished.status.success() || finished.stderr.contains(NOTHING_DELETED) {
            return Ok(String::from_utf8_lossy(&finished.stdout).into_owned());
        }
        Err(ClearError::Refused {
            args: args.join(" "),
            stderr: finished.stderr,
        })
    }

    fn complain(&mut self, error: &ClearError) {
        if let ClearError::Exec(ExecError::Missing { .. }) = error {
            if !self.said_missing {
                tracing::warn!(
                    "conntrack is not installed: UDP clients of a moved or new mapping may reach \
                     its old destination until their flow times out"
                );
            }
            self.said_missing = true;
        } else {
            tracing::warn!(%error, "stale conntrack entries may remain until they time out");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ClearError {
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error("conntrack {args} failed: {stderr}")]
    Refused { args: String, stderr: String },
}

/// The mappings of one protocol and family that a transaction changed.
struct Change<'a> {
    removed: Vec<&'a Mapping>,
    created: Vec<&'a Mapping>,
}

impl Change<'_> {
    fn ports(&self) -> BTreeSet<u16> {
        self.removed
            .iter()
            .chain(&self.created)
            .map(|mapping| mapping.host_port.get())
            .collect()
    }

    /// Whether an entry leads to a pod that lost the port, or past the pod that has it now.
    fn contradicts(&self, entry: &Entry, is_local: impl Fn(IpAddr) -> bool) -> bool {
        let leads_to = |mapping: &Mapping| {
            entry.port == mapping.host_port.get()
                && entry.answered_by == mapping.pod_ip
                && entry.answering_port == mapping.container_port.get()
        };
        let concerns = |mapping: &Mapping| {
            entry.port == mapping.host_port.get()
                && mapping.host_ip.is_none_or(|ip| ip == entry.dst)
        };
        if self.created.iter().any(|mapping| leads_to(mapping)) {
            return false;
        }
        // flows that the node forwards to the same port elsewhere are not ours
        self.removed.iter().any(|mapping| leads_to(mapping))
            || (self.created.iter().any(|mapping| concerns(mapping)) && is_local(entry.dst))
    }
}

/// Where the flow was sent, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    dst: IpAddr,
    port: u16,
    answered_by: IpAddr,
    answering_port: u16,
}

impl Entry {
    /// Reads a line of `conntrack -L`: the tuple as sent, then the tuple of the answers.
    fn parse(line: &str) -> Option<Self> {
        let field = |name: &'static str| {
            line.split_ascii_whitespace()
                .filter_map(move |word| word.strip_prefix(name))
        };
        Some(Self {
            dst: field("dst=").next()?.parse().ok()?,
            port: field("dport=").next()?.parse().ok()?,
            answered_by: field("src=").nth(1)?.parse().ok()?,
            answering_port: field("sport=").nth(1)?.parse().ok()?,
        })
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

/// Only an address of this node can be bound.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests;
