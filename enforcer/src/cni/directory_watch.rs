//! What inotify says of a directory.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Changes taken in at once; the kernel keeps the others, 16,384 by default.
const BATCH: usize = 1024;
/// Room for some hundred events of names as the runtime makes them; a name may have 255 bytes.
const BUFFER: usize = 32 * 1024;

/// One change in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file was written and closed, or moved here. Nothing is said of a file being written: one
    /// in twelve was found empty or cut off when it was read at its creation.
    Written(OsString),
    /// A file was removed, or moved away.
    Removed(OsString),
    /// The kernel's queue was full: anything may have changed.
    Overflow,
    /// The directory itself is gone or elsewhere.
    Lost,
}

/// A stream of changes.
#[derive(Debug)]
pub struct Changes {
    inotify: AsyncFd<OwnedFd>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl Changes {
    /// Changes of the files in a directory, and of the directory itself.
    pub fn in_results(dir: &Path) -> std::io::Result<Self> {
        let files = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE;
        Self::watch(dir, files | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)
    }

    /// Whatever comes into a directory.
    pub fn arrivals(dir: &Path) -> std::io::Result<Self> {
        Self::watch(dir, WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    fn watch(dir: &Path, flags: WatchFlags) -> std::io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, dir, flags | WatchFlags::ONLYDIR)?;
        // SAFETY: an OwnedFd is open until it is dropped, and nobody here takes this one out or
        // replaces it
        #[allow(unsafe_code)] // tokio has no safe way to wait for a descriptor of another kind
        let inotify = unsafe { AsyncFd::register(inotify) }?;
        Ok(Self {
            inotify,
            buffer: vec![MaybeUninit::uninit(); BUFFER],
        })
    }

    /// The next changes, in the order in which they happened; at least one. Cancel-safe.
    pub async fn next(&mut self) -> std::io::Result<Vec<Change>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let buffer = &mut self.buffer;
            let taken = ready.try_io(|inotify| take(inotify.get_ref(), buffer));
            match taken {
                Ok(Ok(changes)) if changes.is_empty() => {}
                Ok(changes) => return changes,
                Err(_nothing_yet) => {}
            }
        }
    }

    /// The changes that the kernel has queued by now; none is waited for.
    pub fn queued(&mut self) -> std::io::Result<Vec<Change>> {
        match take(self.inotify.get_ref(), &mut self.buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(Vec::new()),
            changes => changes,
        }
    }
}

/// Takes what is queued; `WouldBlock` only if nothing is.
fn take(inotify: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> std::io::Result<Vec<Change>> {
    let mut reader = Reader::new(inotify, buffer);
    let mut changes = Vec::new();
    // an emptied buffer is not filled again past BATCH: events in it would be lost
    while changes.len() < BATCH || !reader.is_buffer_empty() {
        match reader.next() {
            Ok(event) => {
                let name = event
                    .file_name()
                    .map(|name| OsStr::from_bytes(name.to_bytes()).to_owned());
                changes.extend(change(event.events(), name));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !changes.is_empty() => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(changes)
}

fn change(events: ReadFlags, name: Option<OsString>) -> Option<Change> {
    let self_gone =
        ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(Change::Overflow);
    }
    if events.intersects(self_gone) {
        return Some(Change::Lost);
    }
    let name = name?;
    if events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
        Some(Change::Removed(name))
    } else {
        Some(Change::Written(name))
    }
}
