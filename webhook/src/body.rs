//! Reads request bodies into memory: each up to a limit, a limited number of them at once, and long ones
//! within one byte budget per peer and one over all peers.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use portmapping_runtime::conns::{Connections, Peer};

use crate::budget::{Budget, Claim};
use crate::unread::UnreadSince;

/// Longest body that needs no budget, in bytes: `MAX_BODIES` of them are little memory. Most reviews are
/// shorter.
const SMALL: u32 = 64 * 1024;
/// Bodies at once, those that wait included, because each holds what its connection has received. If there
/// are more, the peer with most of them loses its oldest. An API server sends at most 200 writes at once by
/// default.
const MAX_BODIES: usize = 256;
/// Budget over all peers for longer bodies, in budgets of one peer, which is that of the longest body. What
/// does not fit waits until others are answered; the review's deadline limits the wait.
const FULL_PEERS: usize = 5;

/// The memory that bodies may take; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Bodies {
    /// Longest body, in bytes.
    limit: u32,
    /// The bodies that are read or wait.
    open: Arc<Mutex<Connections>>,
    budget: Budget,
}

/// A body, and its part of the budget.
pub(crate) type Received = (Vec<u8>, Option<Claim>);

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

impl Bodies {
    /// For bodies of at most `limit` bytes.
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            limit,
            open: Arc::default(),
            budget: Budget::new(limit, FULL_PEERS),
        }
    }

    /// Reads a body of this peer. A long one claims its whole length before it is read: bodies that claim
    /// piece by piece could each hold what the others wait for.
    pub(crate) async fn read(
        &self,
        peer: Peer,
        unread: UnreadSince,
        mut body: Body,
    ) -> Result<Received, BodyError> {
        let too_long = BodyError::TooLong(self.limit);
        let announced = body.size_hint().exact().unwrap_or(self.limit.into());
        let fits = u32::try_from(announced).ok().filter(|it| *it <= self.limit);
        let length = fits.ok_or(too_long)?;
        let (slot, _evicted) = self.open.lock().enter(peer, MAX_BODIES);
        let read = async {
            let mut claim = None;
            if length > SMALL {
                let waited = unread.wait(self.budget.claim(peer, length)).await;
                claim = Some(waited.ok_or(BodyError::TooMany)?);
            }
            let mut bytes = Vec::with_capacity(length as usize);
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(|_| BodyError::Incomplete)?.into_data() {
                    unread.taken(data.len());
                    if bytes.len() + data.len() > length as usize {
                        return Err(too_long);
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok((bytes, claim))
        };
        let read = slot.evicted.run_until_cancelled(read).await;
        read.unwrap_or(Err(BodyError::TooMany))
    }
}

#[cfg(test)]
mod tests;
