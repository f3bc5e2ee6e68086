//! The directory in which the keepers of a node find each other.
//!
//! ```text
//! /run/portmapping/lock                       locked while a keeper takes over and until it listens, and by an
//!                                             uninstallation
//! /run/portmapping/keeper-<start>-<pid>.sock  one per keeper, listening
//! /run/portmapping/rules.lock                 the enforcers': names the one that may change the rules
//! ```

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::SocketType;

use super::KeeperError;
use super::socket::{self, Published};

/// Most peers that are asked. There is one in a rolling update, and none otherwise.
const MAX_PEERS: usize = 8;
/// Pause between two tries for the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// After this long a temporary socket file belongs to a dead keeper and is removed.
const TEMPORARY_AGE: Duration = Duration::from_mins(1);

/// The directory; only this process's user can write to it.
#[derive(Debug)]
pub(super) struct RunDir {
    path: PathBuf,
    own: String,
}

impl RunDir {
    /// Creates the directory if it is missing. Fails if another user could write to it.
    pub(super) fn open(path: &Path) -> Result<Self, KeeperError> {
        let failed = |source| KeeperError::RunDir {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed)?;
        let found = fs::symlink_metadata(path).map_err(failed)?;
        let (mode, uid) = (found.mode() & 0o7777, found.uid());
        if !found.is_dir() || uid != own_uid() || mode & 0o022 != 0 {
            return Err(KeeperError::UnsafeRunDir {
                path: path.to_owned(),
                mode,
                uid,
            });
        }
        let start = SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_nanos();
        // a fixed width, so that names sort by age
        let own = format!("keeper-{start:020x}-{}.sock", std::process::id());
        Ok(Self {
            path: path.to_owned(),
            own,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Locks the directory: no other keeper starts or becomes active again until the file is
    /// dropped. Returns None if another keeper still has the lock at the deadline.
    pub(super) fn lock(&self, deadline: Instant) -> io::Result<Option<File>> {
        lock_file(&self.path.join("lock"), deadline)
    }

    /// Listens for keepers that start later.
    pub(super) fn publish(&self) -> io::Result<(OwnedFd, Published)> {
        socket::listen(&self.path.join(&self.own), SocketType::SEQPACKET)
    }

    /// Returns the socket files of the other keepers that are asked, youngest first. Some keepers may be dead.
    pub(super) fn peers(&self) -> io::Result<Vec<PathBuf>> {
        let mut peers = self.sockets()?;
        peers.truncate(MAX_PEERS);
        Ok(peers)
    }

    /// Returns the socket files of all other keepers, youngest first.
    pub(super) fn sockets(&self) -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(ToOwned::to_owned) else {
                continue;
            };
            let Ok(found) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            if !found.file_type().is_socket() || found.uid() != own_uid() || name == self.own {
                continue;
            }
            if is_temporary(&name) {
                let age = found.modified().ok().and_then(|made| made.elapsed().ok());
                if age.is_some_and(|age| age > TEMPORARY_AGE) {
                    socket::remove_if_there(&entry.path())?;
                }
            } else if name.starts_with("keeper-") && has_extension(&name, "sock") {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names.into_iter().map(|name| self.path.join(name)).collect())
    }
}

/// Locks a file, which is created if it is missing. The lock ends when the file is dropped here and in
/// every program that inherited it. Returns None if another process still has the lock at the deadline.
pub fn lock_file(path: &Path, deadline: Instant) -> io::Result<Option<File>> {
    let mut file = open_lock(path)?;
    loop {
        match file.try_lock() {
            Ok(()) if is_at(path, &file) => return Ok(Some(file)),
            // an uninstallation has removed it, and the next process locks another one
            Ok(()) => file = open_lock(path)?,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    // flock(2) needs no write permission: a file that others can read is one that they can lock
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn is_at(path: &Path, file: &File) -> bool {
    let [found, opened] = [fs::metadata(path), file.metadata()]
        .map(|found| found.map(|found| (found.dev(), found.ino())).ok());
    found.is_some() && found == opened
}

fn is_temporary(name: &str) -> bool {
    name.starts_with(".keeper-") && has_extension(name, "tmp")
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|found| found == extension)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests;
