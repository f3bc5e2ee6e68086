//! Memory that clients share: one budget per peer and one over all peers.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use portmapping_runtime::conns::Peer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The budgets; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    per_peer: u32,
    pub(crate) all: Arc<Semaphore>,
    /// Only peers that have a part at present.
    pub(crate) peers: Arc<Mutex<HashMap<Peer, Arc<Semaphore>>>>,
}

/// A part of both budgets, which is free again when dropped.
pub(crate) type Claim = [Option<OwnedSemaphorePermit>; 2];

impl Budget {
    /// For this many bytes per peer, and for this many peers with a full budget.
    pub(crate) fn new(per_peer: u32, peers: usize) -> Self {
        Self {
            per_peer,
            all: Arc::new(Semaphore::new(per_peer as usize * peers)),
            peers: Arc::default(),
        }
    }

    /// Waits until the bytes fit, or until all of a peer's budget is free if they are more.
    pub(crate) async fn claim(&self, peer: Peer, bytes: u32) -> Claim {
        let own = {
            let mut peers = self.peers.lock();
            peers.retain(|_, budget| Arc::strong_count(budget) > 1);
            let new = || Arc::new(Semaphore::new(self.per_peer as usize));
            Arc::clone(peers.entry(peer).or_insert_with(new))
        };
        let bytes = bytes.min(self.per_peer);
        // always Ok: only a closed semaphore refuses, and these are never closed
        let own = own.acquire_many_owned(bytes).await.ok();
        let all = Arc::clone(&self.all).acquire_many_owned(bytes).await.ok();
        [own, all]
    }
}
