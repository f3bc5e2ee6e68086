//! Passes every held socket from one keeper to the next. Each port stays held all the time.
//!
//! ```text
//! new -> Take { v }                    old -> Retired | Busy | Error      (no handover)
//!                                      old freezes: it answers its enforcer with Retired
//!                                      old -> Offer { ports, sockets }
//!                                      old -> Batch { held, without_socket } + one fd per held port
//! new -> Got, after each Batch ...     old -> End
//! new -> Confirm                       old -> Done, retires, closes its sockets RETAIN later
//! ```
//!
//! A retired keeper asks the others for their status. It takes the ports back in the same way when no
//! other one is active, when the active one ends, or when that one has no enforcer. Keepers of before
//! that (their Offer says no `polls`) only wait for the end of the connection: it stays open.
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

use portmapping_shared::PortKey;
use serde::{Deserialize, Serialize};

mod channel;
mod give;
mod take;

pub(super) use channel::Channel;
pub(super) use give::answer;
pub(super) use take::{NoRoom, PeerState, Predecessors, Taken, survey, take_over};

/// How long a handover may take, on either side: 20,000 sockets take about 50 ms.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a peer may take for its first message before it counts as hung.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long the old keeper keeps its copies of the sockets. If the new keeper dies within this
/// time, the old one is active again with all ports. A port that is released in this time stays
/// bound until it is over.
pub(super) const RETAIN: Duration = Duration::from_secs(2);
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
    Status {
        v: u32,
        /// The answer may be `Unattended` or `Ending`, too.
        #[serde(default, skip_serializing_if = "is_false")]
        details: bool,
    },
    /// This keeper holds the node's ports.
    Active,
    /// This keeper holds them, and no enforcer is connected to it.
    Unattended,
    /// This keeper holds them, and its process was asked to end.
    Ending,
    /// Another keeper holds them.
    Retired,
    /// Another handover is under way.
    Busy,
    /// How many ports and sockets follow.
    Offer {
        ports: usize,
        sockets: usize,
        /// The old keeper asks for the new one's status later.
        #[serde(default, skip_serializing_if = "is_false")]
        polls: bool,
    },
    /// Ports with a descriptor each, and ports held without.
    Batch {
        held: Vec<PortKey>,
        // the name on the wire is kept, so that keepers of earlier versions read it
        #[serde(rename = "noted")]
        without_socket: Vec<PortKey>,
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

// serde wants a reference
#[expect(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests;
