//! Handing every held socket from one keeper to the next, without a moment unheld.
//!
//! ```text
//! new -> Take { v }                    old -> Retired | Busy | Error      (nothing to give)
//!                                      old freezes: its enforcer is answered Retired
//!                                      old -> Offer { ports, sockets }
//!                                      old -> Batch { held, noted } + one fd per held port
//! new -> Got, after each Batch ...     old -> End
//! new -> Confirm                       old -> Done, retires, lets go RETAIN later
//! new keeps the connection: its end tells the old one that the new one died
//! ```
//!
//! SEQPACKET keeps messages apart, so descriptors arrive with the message they were sent with.
//! One batch is on its way at a time: descriptors in flight count against a limit of the user.
//!
//! Confirm decides. Before it the old keeper may give up (timeout, end of connection) and go on;
//! it then closes its receiving side first, so a Confirm that was sent is read, and one that
//! comes too late fails at its sender, who drops what it got.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::wire::Port;

mod channel;
mod give;
mod take;

pub(super) use channel::Channel;
pub(super) use give::answer;
use take::other_active;
pub(super) use take::{NoRoom, Predecessors, Taken, take_over};

/// How long a handover may take, on either side: 20,000 sockets need some 50 ms.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may take to say its first word before it counts as hung.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the old keeper keeps its copies: a new one that dies right after its start leaves
/// everything as it was. A port released meanwhile is bound until then.
const RETAIN: Duration = Duration::from_secs(2);
/// Most descriptors in one message (`SCM_MAX_FD` of the kernel).
const BATCH: usize = 253;
/// Longest message: a batch takes a quarter of it.
const MAX_MESSAGE: usize = 16 * 1024;

/// One message between keepers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// Asks for everything.
    Take { v: u32 },
    /// Asks only whether the keeper is active.
    Status { v: u32 },
    /// I answer for the node's ports.
    Active,
    /// I do not; another keeper does.
    Retired,
    /// Another handover is under way.
    Busy,
    /// What is about to come.
    Offer { ports: usize, sockets: usize },
    /// Ports with a descriptor each, and ports held without.
    Batch { held: Vec<Port>, noted: Vec<Port> },
    /// The batch arrived.
    Got,
    /// That was all.
    End,
    /// They are mine now.
    Confirm,
    /// I have retired.
    Done,
    /// I cannot.
    Error(String),
}

/// A message with the descriptors that came along.
type Received = (Message, Vec<OwnedFd>);

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected message {message:?}"),
    )
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests;
