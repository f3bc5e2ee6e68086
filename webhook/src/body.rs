//! Bodies in memory: each at most so long, all of one peer together, and all of all peers too.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use portmapping_runtime::conns::Peer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What the bodies of one peer may take together, in bytes. A body that does not fit waits for
/// others to be answered; its review's deadline bounds the wait.
const SHARE_BYTES: usize = 4 * 1024 * 1024;
/// Shares that are given out at once.
const SHARES: usize = 4;
/// Bodies of one peer at once, waiting ones included; more are turned away, since each holds what
/// its connection has buffered. An API server has 200 changes under way by default.
const MAX_BODIES: usize = 512;

/// Memory that bodies share; cheap to clone.
///
/// A body claims all that it may come to before any of it is read: bodies that claimed piece by
/// piece could each hold what the others wait for.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    limit: usize,
    all: Arc<Semaphore>,
    peers: Arc<Mutex<HashMap<Peer, Share>>>,
}

#[derive(Clone, Debug)]
struct Share {
    room: Arc<Semaphore>,
    /// Bodies of the peer, waiting or not.
    bodies: usize,
}

/// One body's part in its peer's share.
#[derive(Debug)]
struct Guest {
    peer: Peer,
    peers: Arc<Mutex<HashMap<Peer, Share>>>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        if let Some(share) = peers.get_mut(&self.peer) {
            share.bodies -= 1;
            if share.bodies == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// What a body has claimed; given back when dropped.
#[derive(Debug)]
struct Claim {
    _share: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
    _guest: Guest,
}

impl Budget {
    /// For bodies of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            all: Arc::new(Semaphore::new(Self::share(limit) * SHARES)),
            peers: Arc::default(),
        }
    }

    /// The longest body must fit.
    fn share(limit: usize) -> usize {
        SHARE_BYTES.max(limit)
    }

    async fn claim(&self, peer: Peer, bytes: usize) -> Result<Claim, BodyError> {
        let bytes = u32::try_from(bytes).map_err(|_| BodyError::TooLong(self.limit))?;
        let (guest, room) = self.visit(peer)?;
        let claim = |semaphore: Arc<Semaphore>| async move {
            // never closed
            let claim = semaphore.acquire_many_owned(bytes).await;
            claim.map_err(|_closed| BodyError::Broken)
        };
        Ok(Claim {
            _share: claim(room).await?,
            _all: claim(Arc::clone(&self.all)).await?,
            _guest: guest,
        })
    }

    fn visit(&self, peer: Peer) -> Result<(Guest, Arc<Semaphore>), BodyError> {
        let mut peers = self.peers.lock();
        let share = peers.entry(peer).or_insert_with(|| Share {
            room: Arc::new(Semaphore::new(Self::share(self.limit))),
            bodies: 0,
        });
        if share.bodies >= MAX_BODIES {
            return Err(BodyError::Crowded);
        }
        share.bodies += 1;
        let room = Arc::clone(&share.room);
        drop(peers);
        let peers = Arc::clone(&self.peers);
        Ok((Guest { peer, peers }, room))
    }
}

/// A body that has arrived; gives its memory back when dropped.
#[derive(Debug)]
pub(crate) struct Collected {
    first: Bytes,
    /// Everything, where it came in more than one piece.
    all: Vec<u8>,
    _claim: Claim,
}

impl Collected {
    /// The body.
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.all.is_empty() {
            &self.first
        } else {
            &self.all
        }
    }
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// Longer than allowed; not read any further.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    /// The client left, or broke its own framing.
    #[error("the body ended early")]
    Broken,
    /// One client has too many.
    #[error("one client has too many reviews under way; try again")]
    Crowded,
}

/// Reads a body from this peer.
pub(crate) async fn collect(
    mut body: Body,
    peer: Peer,
    budget: &Budget,
) -> Result<Collected, BodyError> {
    let limit = budget.limit;
    let hint = body.size_hint();
    let announced = usize::try_from(hint.exact().unwrap_or(limit as u64)).unwrap_or(usize::MAX);
    if announced > limit || hint.lower() > limit as u64 {
        return Err(BodyError::TooLong(limit));
    }
    let mut collected = Collected {
        first: Bytes::new(),
        all: Vec::new(),
        _claim: budget.claim(peer, announced).await?,
    };
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_gone| BodyError::Broken)?.into_data() else {
            continue;
        };
        length += data.len();
        if length > limit {
            return Err(BodyError::TooLong(limit));
        }
        if collected.first.is_empty() {
            collected.first = data;
        } else {
            if collected.all.is_empty() {
                // a length that was announced is claimed, and no body grows beyond it
                let whole = hint.exact().map_or(length, |_| announced);
                collected.all.reserve_exact(whole);
                collected.all.extend_from_slice(&collected.first);
            }
            collected.all.extend_from_slice(&data);
        }
    }
    Ok(collected)
}

#[cfg(test)]
mod tests;
