//! What an HTTP/2 connection has received and no body has taken.
//!
//! Windows limit the bodies' bytes, not the memory: h2 keeps each piece of a body in the 8 KiB that arrived
//! with it. A client that sends pieces of 256 bytes, and frames that mean nothing between them, makes a body
//! that waits keep 32 times its window.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Bytes that may arrive for each body that waits in addition to its window: headers and small frames of other
/// requests.
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
    /// Bodies that wait.
    waiting: u64,
}

impl Shared {
    fn is_too_much(&self, count: &Count) -> bool {
        count.bytes.saturating_sub(count.before) > count.waiting * (self.window + OTHERS)
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
        let at = self.0.count.lock().bytes;
        UnreadSince {
            unread: self.clone(),
            at,
        }
    }
}

/// The count of a connection, and what it was when a request began.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnreadSince {
    unread: Unread,
    at: u64,
}

impl UnreadSince {
    /// A body took bytes.
    pub(crate) fn taken(&self, bytes: usize) {
        let mut count = self.unread.0.count.lock();
        count.bytes = count.bytes.saturating_sub(bytes as u64);
    }

    /// Waits for memory for the body; None if too much arrives in the meantime.
    pub(crate) async fn wait<T>(&self, memory: impl Future<Output = T>) -> Option<T> {
        let _waiting = Waiting::enter(self);
        let too_much = async {
            loop {
                let next = self.unread.0.too_much.notified();
                if self.unread.0.is_too_much(&self.unread.0.count.lock()) {
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
    fn enter(since: &'a UnreadSince) -> Self {
        let mut count = since.unread.0.count.lock();
        if count.waiting == 0 {
            count.before = since.at;
        }
        count.waiting += 1;
        drop(count);
        Self(&since.unread.0.count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}
