//! Which connections there are, and which one has to go when there are too many.
//!
//! Turning newcomers away would let whoever fills the table keep everybody else out; so a newcomer is
//! let in, and the address with the most connections gives one up: one that never sent a request
//! if there is any, else the one that has been idle longest. So an address gets its share of the
//! table whatever the others do, however busily they do it.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Limits of one connection's silence.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// Before the first request's header is there, handshake included.
    pub first: Duration,
    /// Between requests. Longer than the 90 s after which a Go client drops an idle connection:
    /// who closes first must be the client, else a request may cross the closing on its way.
    pub idle: Duration,
    /// Within a request, deadline included.
    pub busy: Duration,
}

/// Who is at the other end, as far as shares go; the default for a socket without addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Peer(Option<IpAddr>);

impl From<IpAddr> for Peer {
    /// An IPv6 network of 64 bits is one peer: whoever has one address of it has them all.
    fn from(address: IpAddr) -> Self {
        Self(Some(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        }))
    }
}

impl Peer {
    /// The peer of an accepted connection, whatever the listener's kind of address.
    pub fn of(address: &dyn Any) -> Self {
        let address = address.downcast_ref::<SocketAddr>();
        address.map_or_else(Self::default, |address| address.ip().into())
    }
}

/// All connections; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections {
    table: Arc<Mutex<Table>>,
    max: usize,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    rows: BTreeMap<u64, Row>,
    /// How many rows each peer has; none with zero.
    peers: HashMap<Peer, usize>,
}

#[derive(Debug)]
struct Row {
    peer: Peer,
    evict: CancellationToken,
    /// Requests being answered.
    busy: usize,
    /// Whether a request ever came.
    served: bool,
    /// The last change of the above.
    since: Instant,
}

/// A connection's place in the table; leaves it when dropped.
#[derive(Debug)]
pub struct Place {
    id: u64,
    evict: CancellationToken,
    connections: Connections,
}

/// A request being answered; ends when dropped.
#[derive(Debug)]
pub struct Busy {
    id: u64,
    connections: Connections,
}

impl Table {
    fn remove(&mut self, id: u64) -> Option<Row> {
        let row = self.rows.remove(&id)?;
        if let Some(count) = self.peers.get_mut(&row.peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&row.peer);
            }
        }
        Some(row)
    }

    /// Whose connection goes for this newcomer. None where the newcomer's own peer has as many as
    /// anybody, and all of them are in the middle of a request.
    fn victim(&self, newcomer: Peer) -> Option<u64> {
        let count = |peer| self.peers.get(&peer).copied().unwrap_or_default();
        let after = |peer| count(peer) + usize::from(peer == newcomer);
        let most = self.peers.keys().map(|peer| after(*peer)).max()?;
        // in the middle of a request only the greedy are interrupted
        let greedy = most > count(newcomer) + 1;
        let rows = self.rows.iter().filter(|(_, row)| after(row.peer) == most);
        rows.filter(|(_, row)| row.busy == 0 || greedy)
            .min_by_key(|(_, row)| (row.busy > 0, row.served, row.since))
            .map(|(id, _)| *id)
    }
}

impl Connections {
    /// A table for this many.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            table: Arc::default(),
            max,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.table.lock().rows.len()
    }

    /// A place for a newcomer, and whether another connection had to go for it. None where no other
    /// can be asked to.
    #[must_use]
    pub fn enter(&self, peer: Peer) -> Option<(Place, bool)> {
        let mut table = self.table.lock();
        let full = table.rows.len() >= self.max;
        if full {
            let victim = table.victim(peer)?;
            if let Some(row) = table.remove(victim) {
                row.evict.cancel();
            }
        }
        let id = table.next;
        table.next += 1;
        let evict = CancellationToken::new();
        let row = Row {
            peer,
            evict: evict.clone(),
            busy: 0,
            served: false,
            since: Instant::now(),
        };
        table.rows.insert(id, row);
        *table.peers.entry(peer).or_default() += 1;
        Some((
            Place {
                id,
                evict,
                connections: self.clone(),
            },
            full,
        ))
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.table.lock().rows.get_mut(&id) {
            change(row);
            row.since = Instant::now();
        }
    }
}

impl Place {
    /// Returns when a newcomer needs the place.
    pub async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    /// A request has begun.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.connections.change(self.id, |row| {
            row.busy += 1;
            row.served = true;
        });
        Busy {
            id: self.id,
            connections: self.connections.clone(),
        }
    }

    /// When the connection will have been silent for too long, as things stand now.
    #[must_use]
    pub fn silent_at(&self, silence: Silence) -> Instant {
        match self.connections.table.lock().rows.get(&self.id) {
            None => Instant::now(),
            Some(row) if row.busy > 0 => row.since + silence.busy,
            Some(row) if row.served => row.since + silence.idle,
            Some(row) => row.since + silence.first,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.table.lock().remove(self.id);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connections
            .change(self.id, |row| row.busy = row.busy.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests;
