//! Reading ahead: a socket that is asked for much at once.
//!
//! The TLS library asks for 4 KiB at a time, which would be 280 system calls for a review of 1.1 MB.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one system call may bring, in bytes: two TLS records of the longest kind.
const BUFFER_BYTES: usize = 36 * 1024;
/// Buffers that a thread keeps for whoever reads next. A connection without unread bytes has none.
const SPARE_BUFFERS: usize = 2;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn borrow() -> Box<[u8]> {
    let spare = SPARE.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    });
}

/// Bytes that were read and not asked for yet.
#[derive(Debug)]
struct Unread {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

/// A stream that reads ahead, and writes as it is told.
#[derive(Debug)]
pub(super) struct Ahead<S> {
    stream: S,
    unread: Option<Unread>,
}

impl<S> Ahead<S> {
    /// Around a stream of which nothing has been read.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            unread: None,
        }
    }
}

impl<S: AsyncRead + Unpin> Ahead<S> {
    fn read_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Unread>>> {
        let mut buffer = borrow();
        let mut space = ReadBuf::new(&mut buffer);
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut space);
        let to = space.filled().len();
        if to > 0 {
            let from = 0;
            return Poll::Ready(Ok(Some(Unread { buffer, from, to })));
        }
        give_back(buffer);
        read.map_ok(|()| None)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let there = match self.unread.take() {
            Some(unread) => Some(unread),
            None => ready!(self.read_ahead(cx))?,
        };
        // nothing there: the other side has closed
        if let Some(mut unread) = there {
            let piece = out.remaining().min(unread.to - unread.from);
            out.put_slice(&unread.buffer[unread.from..unread.from + piece]);
            unread.from += piece;
            if unread.from == unread.to {
                give_back(unread.buffer);
            } else {
                self.unread = Some(unread);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
