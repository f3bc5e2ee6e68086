//! The right to change the node's rules. Of all enforcers of a node one has it: the one that took it last.
//!
//! An enforcer hears late that another one has taken the node over, and a program that it started can
//! outlive it. So each change and each read of the rules holds a lock on a file of the node. Programs
//! inherit the lock, and the file names the enforcer that has the right. An enforcer takes the lock before
//! its first read, which waits for a change under way, and writes its name into the file. After that no
//! change of an earlier enforcer begins.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portmapping_keeper::lock_file;
use rustix::io::{FdFlags, fcntl_setfd};

/// How long a change under way is waited for: longer than the time limit of its programs.
const LIMIT: Duration = Duration::from_secs(25);
/// How much of the file is read, bytes: more than a name has.
const NAME_BYTES: u64 = 64;

/// Changes and reads of this process that have not ended.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// The file, and the name of this enforcer.
#[derive(Debug)]
pub(crate) struct RulesLock {
    path: PathBuf,
    name: String,
    /// How long a change under way is waited for.
    limit: Duration,
}

/// Another enforcer has taken the right.
#[derive(Debug, thiserror::Error)]
#[error("another enforcer has taken this node over")]
pub(crate) struct TakenOver;

/// A change or a read that is under way. The lock ends with it and with the programs that it started.
#[derive(Debug)]
pub(crate) struct UnderWay(Option<File>);

impl RulesLock {
    /// Takes the right, after the change under way has ended. Blocks. A change that hangs, or a file that
    /// cannot be used, leaves no node without an enforcer: it goes on without the lock.
    pub(crate) fn take(dir: &Path) -> Self {
        Self::take_within(dir, LIMIT)
    }

    fn take_within(dir: &Path, limit: Duration) -> Self {
        let lock = Self {
            limit,
            path: dir.join("rules.lock"),
            name: format!("{:016x}", rand::random::<u64>()),
        };
        let taken = lock.open().and_then(|file| {
            let busy = file.is_none();
            let file = match file {
                Some(file) => file,
                None => File::options().write(true).open(&lock.path)?,
            };
            lock.write_name(&file)?;
            Ok(busy)
        });
        match taken {
            Ok(false) => {}
            Ok(true) => lock.warn_busy(),
            Err(error) => lock.warn(&error),
        }
        lock
    }

    /// Begins a change or a read. Blocks until an earlier one has ended, or hangs.
    pub(crate) fn begin(&self) -> Result<UnderWay, TakenOver> {
        let mut under_way = UnderWay::new();
        let file = match self.open() {
            Ok(None) if matches!(self.is_named(), Ok(false)) => return Err(TakenOver),
            // a program that hangs must not leave the node without changes
            Ok(None) => {
                self.warn_busy();
                None
            }
            Ok(Some(file)) => match self.is_own(&file) {
                Ok(true) => Some(file),
                Ok(false) => return Err(TakenOver),
                Err(error) => {
                    self.warn(&error);
                    Some(file)
                }
            },
            Err(error) => {
                self.warn(&error);
                None
            }
        };
        under_way.0 = file;
        Ok(under_way)
    }

    /// Locks the file. Returns None if another process still has it after the limit.
    fn open(&self) -> io::Result<Option<File>> {
        lock_file(&self.path, Instant::now() + self.limit)
    }

    /// Whether the file names this enforcer, or none. Needs no lock.
    fn is_named(&self) -> io::Result<bool> {
        let name = read_name(&File::open(&self.path)?)?;
        Ok(name.is_empty() || name == self.name)
    }

    /// Whether the file names this enforcer; and lets programs that are started from now on inherit it.
    fn is_own(&self, file: &File) -> io::Result<bool> {
        let name = read_name(file)?;
        if name.is_empty() {
            // the file was removed
            self.write_name(file)?;
        } else if name != self.name {
            return Ok(false);
        }
        fcntl_setfd(file, FdFlags::empty())?;
        Ok(true)
    }

    fn write_name(&self, mut file: &File) -> io::Result<()> {
        // all names have one length: on a full disk the file has one name or the other, and is never empty
        file.rewind()?;
        file.write_all(self.name.as_bytes())?;
        file.set_len(self.name.len() as u64)
    }

    fn warn_busy(&self) {
        tracing::warn!(
            path = %self.path.display(),
            "an earlier change of the rules has not ended within {} s: find the process that has this file open on \
             the node. Going on without waiting for it; if that change comes later, the next check finds it",
            self.limit.as_secs()
        );
    }

    fn warn(&self, error: &io::Error) {
        tracing::warn!(
            %error, path = %self.path.display(),
            "cannot lock the rules; after an upgrade a change of the earlier enforcer may come late, and is \
             repaired"
        );
    }
}

fn read_name(file: &File) -> io::Result<String> {
    let mut name = String::new();
    file.take(NAME_BYTES).read_to_string(&mut name)?;
    Ok(name)
}

impl UnderWay {
    /// Counts from before the lock is taken: it must not survive `exec`.
    fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::SeqCst);
        Self(None)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        drop(self.0.take());
        UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether a change or a read of this process has not ended. Its lock would survive `exec`.
pub(crate) fn is_under_way() -> bool {
    UNDER_WAY.load(Ordering::SeqCst) > 0
}

#[cfg(test)]
mod tests;
