//! Passes every held socket from one keeper to the next. Each port stays held all the time.
//!
//! ```text
//! new -> Take { v }                    old -> Retired | Busy | Error      (no handover)
//!                                      old freezes: it answers its enforcer with Retired
//!                                      old -> Offer { ports, sockets }
//!                                      old -> Batch { held, without_socket } + one fd per held port
//! new -> Got, after each Batch ...     old -> End
//! new -> Confirm                       old -> Done, retires, closes its sockets RETAIN later
//! new keeps the connection open: when it ends, the old keeper knows that the new one died
//! ```
//!
//! SEQPACKET preserves message boundaries, so descriptors arrive with the message they were sent
//! with. Only one batch is in flight at a time: the kernel limits a user's descriptors in flight.
//!
//! Confirm decides. Before it the old keeper may give up (timeout, end of connection) and stay
//! active. It then shuts down its receiving side first: a Confirm sent earlier is still read, and a
//! later one fails at the new keeper, which then drops the sockets it received.

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

/// How long a handover may take, on either side: 20,000 sockets take about 50 ms.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may take for its first message before it counts as hung.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the old keeper keeps its copies of the sockets. If the new keeper dies within this
/// time, the old one is active again with all ports. A port that is released in this time stays
/// bound until it is over.
const RETAIN: Duration = Duration::from_secs(2);
/// Most descriptors in one message (`SCM_MAX_FD` of the kernel).
const BATCH: usize = 253;
/// Longest message, bytes; a batch takes a quarter of it.
const MAX_MESSAGE: usize = 16 * 1024;

/// One message between keepers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// Asks for everything.
    Take { v: u32 },
    /// Asks only whether the keeper is active.
    Status { v: u32 },
    /// This keeper holds the node's ports.
    Active,
    /// Another keeper holds them.
    Retired,
    /// Another handover is under way.
    Busy,
    /// How many ports and sockets follow.
    Offer { ports: usize, sockets: usize },
    /// Ports with a descriptor each, and ports held without.
    Batch {
        held: Vec<Port>,
        #[serde(rename = "noted")]
        without_socket: Vec<Port>,
    },
    /// The batch has arrived.
    Got,
    /// All batches were sent.
    End,
    /// The new keeper holds the ports from now on.
    Confirm,
    /// The old keeper has retired.
    Done,
    /// The request cannot be served, and why.
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
