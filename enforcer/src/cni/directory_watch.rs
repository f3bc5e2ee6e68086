//! Changes in a directory, from inotify.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// Changes read at once. The kernel queues the others, 16,384 by default.
const BATCH: usize = 1024;
/// Bytes for a few hundred events with names as the runtime makes them; a name has 255 bytes at
/// most.
const BUFFER: usize = 32 * 1024;

/// One change in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectoryChange {
    /// A file was written and closed, or moved in. Files that are still open for writing are not
    /// reported: one in twelve was empty or incomplete when it was read at its creation.
    Written(OsString),
    /// A file was removed, or moved away.
    Removed(OsString),
    /// The kernel's queue was full: any file may have changed.
    Overflow,
    /// The directory itself was removed or moved.
    Lost,
}

/// A stream of changes.
#[derive(Debug)]
pub struct DirectoryWatch {
    inotify: AsyncFd<OwnedFd>,
    buffer: Vec<MaybeUninit<u8>>,
}

impl DirectoryWatch {
    /// Watches the files in a directory, and the directory itself.
    pub fn of_results(dir: &Path) -> std::io::Result<Self> {
        let files = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE;
        Self::watch(dir, files | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)
    }

    /// Watches what is created in a directory or moved into it.
    pub fn of_arrivals(dir: &Path) -> std::io::Result<Self> {
        Self::watch(dir, WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    fn watch(dir: &Path, flags: WatchFlags) -> std::io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        inotify::add_watch(&inotify, dir, flags | WatchFlags::ONLYDIR)?;
        // SAFETY: an OwnedFd is open until it is dropped, and this one is never taken out of the AsyncFd
        // or replaced
        #[allow(unsafe_code)] // tokio has no safe way to wait for a descriptor of another kind
        let inotify = unsafe { AsyncFd::register(inotify) }?;
        Ok(Self {
            inotify,
            buffer: vec![MaybeUninit::uninit(); BUFFER],
        })
    }

    /// Waits for changes and returns them in the order in which they happened. Cancel-safe.
    pub async fn next(&mut self) -> std::io::Result<Vec<DirectoryChange>> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let buffer = &mut self.buffer;
            let taken = ready.try_io(|inotify| read_queued(inotify.get_ref(), buffer));
            match taken {
                Ok(Ok(changes)) if changes.is_empty() => {}
                Ok(changes) => return changes,
                Err(_nothing_yet) => {}
            }
        }
    }

    /// Returns the changes that are queued now, without waiting.
    pub fn queued(&mut self) -> std::io::Result<Vec<DirectoryChange>> {
        match read_queued(self.inotify.get_ref(), &mut self.buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(Vec::new()),
            changes => changes,
        }
    }
}

/// Reads queued changes; `WouldBlock` if there are none.
fn read_queued(
    inotify: &OwnedFd,
    buffer: &mut [MaybeUninit<u8>],
) -> std::io::Result<Vec<DirectoryChange>> {
    let mut reader = Reader::new(inotify, buffer);
    let mut changes = Vec::new();
    // stops only with an empty buffer: events left in it would be lost
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

fn change(events: ReadFlags, name: Option<OsString>) -> Option<DirectoryChange> {
    let self_gone =
        ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(DirectoryChange::Overflow);
    }
    if events.intersects(self_gone) {
        return Some(DirectoryChange::Lost);
    }
    let name = name?;
    if events.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM) {
        Some(DirectoryChange::Removed(name))
    } else {
        Some(DirectoryChange::Written(name))
    }
}
