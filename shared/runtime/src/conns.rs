//! The open connections of a server, and which one is closed when a new one finds the table full.
//!
//! A new connection is always accepted. If the table is full, the peer with the most connections
//! loses one: first one that never sent a request, then the one idle longest, and only then one in
//! the middle of a request. So no peer can keep another one out, however many connections it opens.
//!
//! Exception: if fewer than a quarter of that peer's connections are without a request, they are
//! closed last. Clients that keep many idle connections would else close each new connection from
//! their address, which may be the API server's as well, before its TLS handshake ends.
//!
//! The webhook limits the bodies that it reads at once in the same way.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

mod requests;

pub use requests::OpenRequest;
use requests::Requests;

/// The other end of a connection, as the unit of fair sharing. The default stands for a socket
/// without addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer(Option<IpAddr>);

impl From<IpAddr> for Peer {
    /// An IPv6 network of 64 bits is one peer: a host usually controls all of its addresses.
    fn from(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        }))
    }
}

/// What a connection does, and since when. Ordered: the smallest is closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Activity {
    /// No request yet; accepted then.
    NoRequestYet(Instant),
    /// No request at present; the last one began then.
    Idle(Instant),
    /// At least one request is being answered; the oldest began then.
    Busy(Instant),
}

/// The state of one open connection. It is open until all references but the table's are dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    /// Cancelled when another connection needs the place: close this one.
    pub evicted: CancellationToken,
    peer: Peer,
    accepted: Instant,
    requests: Requests,
}

/// The table of open connections.
#[derive(Debug, Default)]
pub struct Connections(Vec<Arc<ConnectionSlot>>);

impl Connections {
    /// Adds a connection, so that there are at most `max`. Also returns whether another connection
    /// was evicted for it.
    pub fn enter(&mut self, peer: Peer, max: usize) -> (Arc<ConnectionSlot>, bool) {
        let Self(slots) = self;
        slots.retain(|slot| Arc::strong_count(slot) > 1 && !slot.evicted.is_cancelled());
        let is_new = |slot: &ConnectionSlot| matches!(slot.activity(), Activity::NoRequestYet(_));
        let mut counts = HashMap::from([(peer, (1, 0))]);
        for slot in slots.iter() {
            let (all, new) = counts.entry(slot.peer).or_default();
            (*all, *new) = (*all + 1, *new + usize::from(is_new(slot)));
        }
        let first_closed = slots.iter().min_by_key(|slot| {
            let (all, new) = counts.get(&slot.peer).copied().unwrap_or_default();
            let reserved = is_new(slot) && new < all / 4;
            (Reverse(all), reserved, slot.activity())
        });
        let victim = first_closed.filter(|_| slots.len() >= max);
        let evicted = victim.inspect(|slot| slot.evicted.cancel()).is_some();
        let slot = Arc::new(ConnectionSlot {
            evicted: CancellationToken::new(),
            peer,
            accepted: Instant::now(),
            requests: Requests::default(),
        });
        slots.push(Arc::clone(&slot));
        (slot, evicted)
    }
}

impl ConnectionSlot {
    /// Begins a request; it ends when the value is dropped.
    #[must_use]
    pub fn begin_request(&self) -> OpenRequest {
        self.requests.begin()
    }

    /// What the connection does at present.
    #[must_use]
    pub fn activity(&self) -> Activity {
        self.requests.activity(self.accepted)
    }
}

#[cfg(test)]
mod tests;
