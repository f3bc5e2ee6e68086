//! What an HTTP/2 connection has received and no body has taken.
//!
//! Windows limit the bodies' bytes, not the memory: h2 keeps each piece of a body in the 8 KiB that arrived
//! with it. A client that sends pieces of 256 bytes, and frames that mean nothing between them, makes a body
//! that waits keep 32 times its window.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes that may arrive for each open body in addition to its window: headers and small frames.
const OTHERS: u64 = 32 * 1024;

/// The count of one connection; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unread(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of one body that may arrive before they are read.
    window: u64,
    count: Mutex<Count>,
    too_much: Notify,
}

#[derive(Debug, Default)]
struct Count {
    /// Received and not taken since the connection began, headers included.
    bytes: u64,
    /// Of these, what was there when the first of the bodies that wait began.
    before: u64,
    /// Bodies of which not all was taken. One that is being read may have a window that was not taken yet, so
    /// it counts as much as one that waits.
    open: u64,
    /// Of these, those that wait.
    waiting: u64,
}

impl Shared {
    fn is_too_much(&self, count: &Count) -> bool {
        count.bytes.saturating_sub(count.before) > count.open * (self.window + OTHERS)
    }
}

impl Unread {
    /// For a connection whose bodies have this window, in bytes.
    pub(crate) fn new(window: u32) -> Self {
        Self(Arc::new(Shared {
            window: window.into(),
            ..Shared::default()
        }))
    }

    /// Bytes have arrived.
    pub(crate) fn received(&self, bytes: usize) {
        let mut count = self.0.count.lock();
        count.bytes += bytes as u64;
        if count.waiting > 0 && self.0.is_too_much(&count) {
            self.0.too_much.notify_waiters();
        }
    }

    /// A request begins: its body may arrive before it waits.
    pub(crate) fn begin(&self) -> UnreadSince {
        let mut count = self.0.count.lock();
        count.open += 1;
        UnreadSince(Arc::new(Open {
            unread: self.clone(),
            at: count.bytes,
        }))
    }
}

/// The count of a connection, and what it was when a request began. Clones share it: the body is open until
/// the last of them is dropped.
#[derive(Clone, Debug)]
pub(crate) struct UnreadSince(Arc<Open>);

#[derive(Debug)]
struct Open {
    unread: Unread,
    at: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.unread.0.count.lock().open -= 1;
    }
}

impl Default for UnreadSince {
    fn default() -> Self {
        Unread::default().begin()
    }
}

impl UnreadSince {
    /// A body took bytes.
    pub(crate) fn taken(&self, bytes: usize) {
        let mut count = self.0.unread.0.count.lock();
        count.bytes = count.bytes.saturating_sub(bytes as u64);
    }

    /// Waits for memory for the body; None if too much arrives in the meantime.
    pub(crate) async fn wait<T>(&self, memory: impl Future<Output = T>) -> Option<T> {
        let _waiting = Waiting::enter(&self.0);
        let shared = &self.0.unread.0;
        let too_much = async {
            loop {
                let next = shared.too_much.notified();
                if shared.is_too_much(&shared.count.lock()) {
                    return;
                }
                next.await;
            }
        };
        tokio::select! {
            biased;
            claim = memory => Some(claim),
            () = too_much => None,
        }
    }
}

/// A body that waits.
struct Waiting<'a>(&'a Mutex<Count>);

impl<'a> Waiting<'a> {
    fn enter(body: &'a Open) -> Self {
        let mut count = body.unread.0.count.lock();
        if count.waiting == 0 {
            count.before = body.at;
        }
        count.waiting += 1;
        drop(count);
        Self(&body.unread.0.count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

#[cfg(test)]
mod tests;
