//! What the node's kernel says about ports: which are reserved, which are handed out as source
//! ports, and what else decides how a mapping must be programmed.
//!
//! A fact whose file is absent counts as empty and leaves a note: kernels differ in what they
//! have. A file that is there and says something else than expected is an error.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use portmapping_shared::{PortRange, PortSet};

/// More than the longest list of reserved ports: every second one, 6 characters each.
const MAX_VALUE: usize = 256 * 1024;

const RESERVED: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";
const EPHEMERAL: &str = "proc/sys/net/ipv4/ip_local_port_range";
const INTERFACES_6: &str = "proc/net/if_inet6";
const DISABLE_6: &str = "proc/sys/net/ipv6/conf/all/disable_ipv6";

/// The facts, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `ip_local_reserved_ports`: the administrator keeps these for something else.
    pub reserved: PortSet,
    /// `ip_local_port_range`: source ports of outgoing connections come from here.
    pub ephemeral: Option<PortRange>,
    /// Whether this network namespace has IPv6 at all, and it is not disabled.
    pub ipv6: bool,
    /// One line for each file that is absent.
    pub notes: Vec<String>,
}

/// A file of the kernel could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum NodeFactsError {
    /// It is there, but cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its text has another form than known.
    #[error("{} says {found:?}, which is not {expected}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it should say.
        expected: &'static str,
        /// The beginning of what it says.
        found: String,
    },
}

impl NodeFacts {
    /// Reads the facts below `root`, which is `/` but in tests.
    pub fn read(root: &Path) -> Result<Self, NodeFactsError> {
        let mut notes = Vec::new();
        let mut fact = |file: &str| value(root, file, &mut notes);
        let reserved = fact(RESERVED)?;
        let ephemeral = fact(EPHEMERAL)?;
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
            ipv6: interfaces.is_some() && switch(DISABLE_6, disabled)? == Some(false),
            notes,
        })
    }
}

/// The text of a file; None where it is absent.
fn value(
    root: &Path,
    file: &str,
    notes: &mut Vec<String>,
) -> Result<Option<String>, NodeFactsError> {
    let path = root.join(file);
    match read_at_once(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            notes.push(format!("{} is absent", path.display()));
            Ok(None)
        }
        Err(source) => Err(NodeFactsError::Read { path, source }),
    }
}

/// One read with a large buffer: the kernel answers a second read of `ip_local_reserved_ports`
/// with the end of the file, so reading in pieces, as std does, would cut the list short.
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
        // port 0 may be reserved, and a range may start there; neither concerns us
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
