//! Bodies in memory: each at most so long, and all of them together too.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What all bodies together may take, in bytes. A body that does not fit waits for others to be
/// answered; its review's deadline bounds the wait.
const BUDGET_BYTES: usize = 16 * 1024 * 1024;

/// Memory that bodies share; cheap to clone. Claimed as bytes arrive, not as they are announced:
/// a client must send what it wants to take from others.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_BYTES)))
    }
}

/// A body that has arrived; gives its memory back when dropped.
#[derive(Debug)]
pub(crate) struct Collected {
    first: Bytes,
    /// Everything, where it came in more than one piece.
    all: Vec<u8>,
    claims: Option<OwnedSemaphorePermit>,
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
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn collect(
    mut body: Body,
    limit: usize,
    budget: &Budget,
) -> Result<Collected, BodyError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(BodyError::TooLong(limit));
    }
    let mut collected = Collected {
        first: Bytes::new(),
        all: Vec::new(),
        claims: None,
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
        collected.claim(budget, data.len()).await?;
        if collected.first.is_empty() {
            collected.first = data;
        } else {
            if collected.all.is_empty() {
                collected.all.extend_from_slice(&collected.first);
            }
            collected.all.extend_from_slice(&data);
        }
    }
    Ok(collected)
}

impl Collected {
    async fn claim(&mut self, budget: &Budget, bytes: usize) -> Result<(), BodyError> {
        // a frame is far below 4 GiB, and the semaphore is never closed
        let bytes = u32::try_from(bytes).map_err(|_| BodyError::Broken)?;
        let claim = Arc::clone(&budget.0).acquire_many_owned(bytes).await;
        let claim = claim.map_err(|_closed| BodyError::Broken)?;
        match &mut self.claims {
            Some(claims) => claims.merge(claim),
            none => *none = Some(claim),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
