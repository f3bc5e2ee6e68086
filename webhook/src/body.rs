//! Reads request bodies into memory: each up to a limit, and all of them within one byte budget per
//! peer and one over all peers, for small bodies and longer ones apart.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use axum::body::{Body, HttpBody};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use portmapping_runtime::conns::Peer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest body of most reviews, in bytes. Longer ones have budgets of their own: a few peers that
/// announce such bodies and send nothing make only those wait.
const SMALL: u32 = 64 * 1024;
/// Budget of one peer for small bodies, in bytes. A body that does not fit waits until others are
/// answered; the review's deadline limits the wait.
const PEER_SMALL_BYTES: u32 = 1024 * 1024;
/// The same for longer ones.
const PEER_BYTES: u32 = 4 * 1024 * 1024;
/// Budget over all peers for small bodies, in budgets of one peer.
const SMALL_PEERS: usize = 16;
/// The same for longer ones.
const FULL_PEERS: usize = 4;
/// Bodies of one peer at once, those that wait included. More are refused: each of them holds what
/// its connection has received. An API server sends at most 200 writes at once by default.
const MAX_BODIES: usize = 512;

/// The memory that bodies may take; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    /// Longest body, in bytes.
    limit: u32,
    small: Pool,
    large: Pool,
}

/// The memory that small or longer bodies may take.
#[derive(Clone, Debug)]
struct Pool {
    per_peer: usize,
    all: Arc<Semaphore>,
    /// Only peers with a body at present.
    peers: Arc<Mutex<HashMap<Peer, Weak<Semaphore>>>>,
}

/// A body, and its part of both budgets, which is free again when dropped.
pub(crate) type Received = (Vec<u8>, [Option<OwnedSemaphorePermit>; 2]);

/// Why a body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// Longer than the limit; the rest is not read.
    #[error("the body is longer than {0} bytes")]
    TooLong(u32),
    /// The client disconnected or broke the framing of its request.
    #[error("the body ended early")]
    Incomplete,
    /// One client sends too many at once.
    #[error("this client has too many reviews in progress; try again")]
    TooMany,
}

impl Budget {
    /// For bodies of at most `limit` bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            small: Pool::new(PEER_SMALL_BYTES, SMALL_PEERS),
            large: Pool::new(PEER_BYTES.max(limit), FULL_PEERS),
        }
    }

    /// Reads a body of this peer. It claims its whole length before it is read: bodies that claim
    /// piece by piece could each hold what the others wait for.
    pub(crate) async fn read(&self, peer: Peer, mut body: Body) -> Result<Received, BodyError> {
        let too_long = BodyError::TooLong(self.limit);
        let announced = body.size_hint().exact().unwrap_or(self.limit.into());
        let fits = u32::try_from(announced).ok().filter(|it| *it <= self.limit);
        let length = fits.ok_or(too_long)?;
        let pool = if length <= SMALL {
            &self.small
        } else {
            &self.large
        };
        let budget = pool.of(peer);
        // one reference is ours, the others are of the peer's other bodies
        if Arc::strong_count(&budget) > MAX_BODIES {
            return Err(BodyError::TooMany);
        }
        // always Some: only a closed semaphore refuses, and these are never closed
        let own = budget.acquire_many_owned(length).await.ok();
        let shared = Arc::clone(&pool.all).acquire_many_owned(length).await.ok();
        let mut bytes = Vec::with_capacity(length as usize);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|_| BodyError::Incomplete)?.into_data() {
                if bytes.len() + data.len() > length as usize {
                    return Err(too_long);
                }
                bytes.extend_from_slice(&data);
            }
        }
        Ok((bytes, [own, shared]))
    }
}

impl Pool {
    fn new(per_peer: u32, peers: usize) -> Self {
        Self {
            per_peer: per_peer as usize,
            all: Arc::new(Semaphore::new(per_peer as usize * peers)),
            peers: Arc::default(),
        }
    }

    fn of(&self, peer: Peer) -> Arc<Semaphore> {
        let mut peers = self.peers.lock();
        peers.retain(|_, budget| budget.strong_count() > 0);
        let entry = peers.entry(peer).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let budget = Arc::new(Semaphore::new(self.per_peer));
            *entry = Arc::downgrade(&budget);
            budget
        })
    }
}

#[cfg(test)]
mod tests;
