//! Settings of the node's kernel: the reserved and the privileged ports, the range of source ports, and
//! whether there is IPv6.
//!
//! A missing file counts as empty and leaves a note, because kernels differ. A file with unexpected
//! content is an error.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use portmapping_shared::{HostPort, PortRange, PortSet};

/// Bytes; more than the longest list of reserved ports: every second port, 6 characters each.
const MAX_VALUE: usize = 256 * 1024;

const RESERVED: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";
const EPHEMERAL: &str = "proc/sys/net/ipv4/ip_local_port_range";
const UNPRIVILEGED: &str = "proc/sys/net/ipv4/ip_unprivileged_port_start";
const INTERFACES_6: &str = "proc/net/if_inet6";
const DISABLE_6: &str = "proc/sys/net/ipv6/conf/all/disable_ipv6";

/// The settings at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `ip_local_reserved_ports`: ports that an administrator reserves for other programs.
    pub reserved: PortSet,
    /// `ip_local_port_range`: the source ports of outgoing connections.
    pub ephemeral: Option<PortRange>,
    /// `ip_unprivileged_port_start`: the keeper may not bind the ports below it.
    pub unprivileged: Option<u16>,
    /// Whether this network namespace has IPv6, and it is not disabled.
    pub ipv6: bool,
    /// One line for each missing file.
    pub notes: Vec<String>,
}

/// Why a file of the kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeFactsError {
    /// It exists and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its text has an unknown format.
    #[error("{} contains {found:?}, which is not {expected}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it should contain.
        expected: &'static str,
        /// The beginning of what it contains.
        found: String,
    },
    /// The keeper may not bind ports of the range.
    #[error(
        "--range {range} has port {port}, and the keeper may not bind ports below \
         net.ipv4.ip_unprivileged_port_start, {unprivileged}: choose a range from there on"
    )]
    Privileged {
        /// The range as given.
        range: PortRange,
        /// Its lowest port that would be allocated.
        port: HostPort,
        /// `ip_unprivileged_port_start`.
        unprivileged: u16,
    },
}

impl NodeFacts {
    /// Reads the facts below `root`: `/`, except in tests.
    pub fn read(root: &Path) -> Result<Self, NodeFactsError> {
        let mut notes = Vec::new();
        let mut fact = |file: &str| value(root, file, &mut notes);
        let reserved = fact(RESERVED)?;
        let ephemeral = fact(EPHEMERAL)?;
        let unprivileged = fact(UNPRIVILEGED)?;
        let interfaces = fact(INTERFACES_6)?;
        let disabled = fact(DISABLE_6)?;
        let wrong = |file: &str, text: &str, expected| NodeFactsError::Parse {
            path: root.join(file),
            expected,
            found: text.chars().take(80).collect(),
        };
        let switch = |file: &str, text: Option<String>| match text.as_deref() {
            None => Ok(None),
            Some("0") => Ok(Some(false)),
            Some(text) if text.parse::<u32>().is_ok() => Ok(Some(true)),
            Some(text) => Err(wrong(file, text, "a number")),
        };
        Ok(Self {
            reserved: reserved.map_or(Ok(PortSet::default()), |text| {
                parse_reserved(&text)
                    .ok_or_else(|| wrong(RESERVED, &text, "a list of ports and ranges"))
            })?,
            ephemeral: ephemeral
                .map(|text| {
                    parse_ephemeral(&text).ok_or_else(|| wrong(EPHEMERAL, &text, "two ports"))
                })
                .transpose()?,
            unprivileged: unprivileged
                .map(|text| {
                    text.parse()
                        .map_err(|_| wrong(UNPRIVILEGED, &text, "a port"))
                })
                .transpose()?,
            ipv6: interfaces.is_some() && switch(DISABLE_6, disabled)? == Some(false),
            notes,
        })
    }

    /// Refuses a range of which pods would get ports that the keeper may not bind.
    pub fn check_privileged(
        &self,
        range: PortRange,
        excluded: &PortSet,
    ) -> Result<(), NodeFactsError> {
        let lowest = range.ports().find(|port| !excluded.contains(*port));
        match (lowest, self.unprivileged) {
            (Some(port), Some(unprivileged)) if port.get() < unprivileged => {
                Err(NodeFactsError::Privileged {
                    range,
                    port,
                    unprivileged,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Returns the text of a file; None if it is missing.
fn value(
    root: &Path,
    file: &str,
    notes: &mut Vec<String>,
) -> Result<Option<String>, NodeFactsError> {
    let path = root.join(file);
    match read_at_once(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            notes.push(format!("{} is missing", path.display()));
            Ok(None)
        }
        Err(source) => Err(NodeFactsError::Read { path, source }),
    }
}

/// Reads with one call and a large buffer: the kernel answers a second read of
/// `ip_local_reserved_ports` with the end of the file, so std's reads in pieces would lose the rest.
fn read_at_once(path: &Path) -> io::Result<String> {
    let mut bytes = vec![0; MAX_VALUE];
    let length = File::open(path)?.read(&mut bytes)?;
    bytes.truncate(length);
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(text.trim().to_owned())
}

fn parse_reserved(text: &str) -> Option<PortSet> {
    let mut ports = PortSet::default();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        // port 0 may be reserved, and a range may start there; no pod gets it
        let part = part
            .trim()
            .strip_prefix("0-")
            .map_or(part.to_owned(), |rest| format!("1-{rest}"));
        if part.trim() != "0" {
            ports.insert_range(part.parse().ok()?);
        }
    }
    Some(ports)
}

fn parse_ephemeral(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    format!("{first}-{}", last.trim()).parse().ok()
}

#[cfg(test)]
mod tests;
