//! The protocol between enforcer and keeper: length-prefixed JSON over a unix stream socket.
//!
//! ```text
//! frame   = length (u32, big endian, at most MAX_FRAME) . JSON
//! keeper  : Hello, first on every connection
//! enforcer: Envelope { v, request }        keeper: one Reply per request, in order
//! after Watch only the keeper sends: its role now and at every change
//! ```
//!
//! Later versions still read version 1: fields are only added, and unknown fields are ignored.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use portmapping_shared::PortKey;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of this protocol and of the one between keepers.
pub const VERSION: u32 = 1;
/// Longest frame in either direction, bytes; [`MAX_PORTS`] ports take a third of it.
pub const MAX_FRAME: usize = 64 * 1024;
/// Most ports in one request or reply; more are sent in several.
pub const MAX_PORTS: usize = 1024;
/// How long the rest of a frame may take after its first byte.
pub(super) const FRAME_TIMEOUT: Duration = Duration::from_secs(2);

/// A message from the enforcer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Version of the protocol that the request uses.
    pub v: u32,
    /// The request.
    pub request: Request,
}

/// A request of the enforcer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Hold these ports; a port that is already held stays as it is.
    Hold(Vec<PortKey>),
    /// Release these ports; a port that is not held is no error.
    Release(Vec<PortKey>),
    /// List the held ports above `after`, in ascending order.
    List {
        /// Last port of the previous page.
        after: Option<PortKey>,
    },
    /// Become active, because the enforcer is able to act; the reply is the role. An active keeper stays
    /// as it is.
    TakeOver,
    /// Send the role now and at every change. A new watcher replaces the previous one.
    Watch,
}

/// A message from the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Greeting.
    Hello {
        /// Highest version that the keeper understands.
        v: u32,
        /// A random number, different after each start of the keeper.
        instance: u64,
    },
    /// One outcome per port, in the order of the request.
    Holding(Vec<HoldOutcome>),
    /// How many of the ports were held before.
    Released(usize),
    /// A page of held ports.
    Held {
        /// At most [`MAX_PORTS`].
        ports: Vec<PortKey>,
        /// Whether there are ports after the last one.
        more: bool,
    },
    /// The keeper's role, to a watcher and after a takeover. Version 1 calls it the duty.
    #[serde(rename = "duty")]
    Role(KeeperRole),
    /// Nothing was done: another keeper holds the ports, or is taking them over.
    Retired,
    /// Nothing was done: the request is invalid. The keeper closes the connection.
    Error(String),
}

/// What a request to hold did for one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldOutcome {
    /// Bound: no other process can bind it.
    Held,
    /// Recorded without a socket (SCTP): another process may still bind it.
    HeldWithoutSocket,
    /// The kernel refused the bind.
    Refused(Errno),
}

/// Error number of a system call; displays as the system's text for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Whether a keeper holds the node's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeeperRole {
    /// It holds them and serves requests.
    Active,
    /// It is handing them over to another keeper, and refuses requests until that is done.
    Frozen,
    /// Another keeper holds them. This one has handed them over, or has just started.
    Retired,
}

/// Returns the frame of a message: its length, then its JSON.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let prefix = prefix.ok_or_else(|| invalid(&too_long(length)))?;
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// Returns the length that a prefix announces. Fails if it is over [`MAX_FRAME`].
pub fn length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(invalid(&too_long(length)));
    }
    Ok(length)
}

/// Parses the JSON of a frame.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(|error| invalid(&error.to_string()))
}

/// Reads a frame: waits without limit for its first byte, then [`FRAME_TIMEOUT`] for the rest.
/// Returns None if the other side closed the connection between frames.
pub(super) fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    stream.set_read_timeout(None)?;
    if stream.read(&mut prefix[..1])? == 0 {
        return Ok(None);
    }
    let deadline = Instant::now() + FRAME_TIMEOUT;
    fill(stream, &mut prefix[1..], deadline)?;
    let mut json = vec![0; length(prefix)?];
    fill(stream, &mut json, deadline)?;
    decode(&json).map(Some)
}

/// Writes one frame.
pub(super) fn write<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    stream.set_write_timeout(Some(FRAME_TIMEOUT))?;
    stream.write_all(&encode(message)?)
}

fn fill(stream: &mut UnixStream, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        // one limit for the frame: with a limit per read, a slow sender could send for ever
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn too_long(length: usize) -> String {
    format!("a frame of {length} bytes is over the limit of {MAX_FRAME} bytes")
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
