//! Which connections there are, and which one has to go when there are too many.
//!
//! Turning newcomers away would let whoever fills the table keep the API server out; so a newcomer
//! is let in, and the connection that has been idle longest goes: one that never sent a request if
//! there is any.

use std::collections::BTreeMap;
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

/// All connections; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    table: Arc<Mutex<Table>>,
    max: usize,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    rows: BTreeMap<u64, Row>,
}

#[derive(Debug)]
struct Row {
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
pub(crate) struct Place {
    id: u64,
    evict: CancellationToken,
    connections: Connections,
}

/// A request being answered; ends when dropped.
#[derive(Debug)]
pub(crate) struct Busy {
    id: u64,
    connections: Connections,
}

impl Connections {
    /// A table for this many.
    pub(crate) fn new(max: usize) -> Self {
        Self {
            table: Arc::default(),
            max,
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.table.lock().rows.len()
    }

    /// A place for a newcomer, and whether another connection had to go for it. None while every
    /// connection is in the middle of a request.
    pub(crate) fn enter(&self) -> Option<(Place, bool)> {
        let mut table = self.table.lock();
        let full = table.rows.len() >= self.max;
        if full {
            let idle = table.rows.iter().filter(|(_, row)| row.busy == 0);
            let victim = idle
                .min_by_key(|(_, row)| (row.served, row.since))
                .map(|(id, _)| *id)?;
            if let Some(row) = table.rows.remove(&victim) {
                row.evict.cancel();
            }
        }
        let id = table.next;
        table.next += 1;
        let evict = CancellationToken::new();
        let row = Row {
            evict: evict.clone(),
            busy: 0,
            served: false,
            since: Instant::now(),
        };
        table.rows.insert(id, row);
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
    pub(crate) async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    /// A request has begun.
    pub(crate) fn busy(&self) -> Busy {
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
    pub(crate) fn silent_at(&self, silence: Silence) -> Instant {
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
        self.connections.table.lock().rows.remove(&self.id);
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
