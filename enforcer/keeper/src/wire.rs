//! What enforcer and keeper say to each other: length-prefixed JSON over a unix stream socket.
//!
//! ```text
//! frame   = length (u32, big endian, at most MAX_FRAME) . JSON
//! keeper  : Hello, at once on every connection (or Error)
//! enforcer: Envelope { v, request }        keeper: one Reply per request, in order
//! after Watch the keeper talks alone: a Duty now and at every change
//! ```
//!
//! Version 1 stays understood for ever: fields are only added, and unknown ones are ignored.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use portmapping_shared::{HostPort, Protocol};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of this protocol and of the one between keepers.
pub const VERSION: u32 = 1;
/// Longest frame in either direction: [`MAX_PORTS`] take a third of it.
pub const MAX_FRAME: usize = 64 * 1024;
/// Most ports in one request or reply; more go in several.
pub const MAX_PORTS: usize = 1024;
/// How long the rest of a frame may take once its first byte is there.
pub(super) const FRAME_TIMEOUT: Duration = Duration::from_secs(2);

/// What is held: a port of the node under one protocol.
pub type Port = (Protocol, HostPort);

/// What the enforcer sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Version the request is written in.
    pub v: u32,
    /// The request.
    pub request: Request,
}

/// What an enforcer may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Bind these ports and no others; one held already stays as it is.
    Hold(Vec<Port>),
    /// Let go of these; one not held is no error.
    Release(Vec<Port>),
    /// The held ports above `after`, in ascending order.
    List {
        /// Where the previous page ended.
        after: Option<Port>,
    },
    /// Tell the duty now and at every change. The newest watcher replaces the one before.
    Watch,
}

/// What the keeper answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Greeting.
    Hello {
        /// Highest version understood.
        v: u32,
        /// Another number after each start of the keeper.
        instance: u64,
    },
    /// One outcome per port asked for, in the order of the request.
    Holding(Vec<Outcome>),
    /// How many of the ports were held until now.
    Released(usize),
    /// A page of held ports.
    Held {
        /// At most [`MAX_PORTS`].
        ports: Vec<Port>,
        /// Whether there are ports after the last one.
        more: bool,
    },
    /// The keeper's duty, to a watcher.
    Duty(Duty),
    /// Nothing was done: another keeper has the ports, or is about to take them.
    Retired,
    /// Nothing was done: the request is wrong. The keeper closes the connection.
    Error(String),
}

/// What became of one port of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Bound: no other process can have it.
    Held,
    /// Noted only. SCTP has no sockets here, so nothing keeps another process off.
    HeldWithoutSocket,
    /// The kernel refused the bind.
    Refused(Errno),
}

/// Error number of a system call; displays as the kernel's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Whether a keeper answers for the node's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// Yes.
    Active,
    /// Its ports are on their way to another keeper; nothing may change meanwhile.
    Frozen,
    /// Another keeper does.
    Retired,
}

/// The JSON of a message behind its length.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let prefix = prefix.ok_or_else(|| invalid(&too_long(length)))?;
    frame[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// The length a prefix announces, if a frame may be as long.
pub fn length(prefix: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(invalid(&too_long(length)));
    }
    Ok(length)
}

/// The message a frame carries.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    serde_json::from_slice(json).map_err(|error| invalid(&error.to_string()))
}

/// Waits without limit for a frame to begin, then [`FRAME_TIMEOUT`] for its end. None where the
/// other side closed the connection between frames.
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
        // a timeout per read alone would let a sender trickle bytes for ever
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
    format!("a frame of {length} bytes is over the limit of {MAX_FRAME}")
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests;
