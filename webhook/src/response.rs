//! Bodies of responses. They keep their part of a budget until the client has taken them: a client that
//! takes none could else fill the memory with them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

use crate::budget::Claim;

/// Bytes that a connection gets at once. It keeps them until the client takes them, and by then they may have
/// no part of a budget any more. Most responses are shorter: those need no budget, so that clients which take
/// nothing cannot make them wait.
pub(crate) const PIECE: usize = 4 * 1024;

/// A response that is sent in pieces.
pub(crate) struct InPieces {
    bytes: Bytes,
    _claim: Option<Claim>,
}

impl InPieces {
    pub(crate) fn new(bytes: Vec<u8>, claim: Option<Claim>) -> Self {
        Self {
            bytes: bytes.into(),
            _claim: claim,
        }
    }
}

impl HttpBody for InPieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.bytes.len().min(PIECE);
        let piece = (length > 0).then(|| self.bytes.split_to(length));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}
