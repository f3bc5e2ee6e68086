//! The end of all keepers of a node, which an uninstallation waits for.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::SocketType;

use super::run_dir::RunDir;
use super::{KeeperError, setup, socket};

/// Pause between two checks whether the keepers have ended, and longest wait for one to accept.
const PAUSE: Duration = Duration::from_millis(200);

/// Why keepers do not count as ended.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// A keeper did not end in time.
    #[error(
        "portmapping runs on this node: a keeper still answers at {}. Nothing was removed; delete the \
         DaemonSet enforcer first",
        .0.display()
    )]
    Answers(PathBuf),
    /// A keeper has started since.
    #[error(
        "a keeper started while portmapping was removed, and answers at {}: its enforcer writes the rules \
         again. Delete the DaemonSet enforcer, then run this again",
        .0.display()
    )]
    Started(PathBuf),
    /// The run directory cannot be read or locked.
    #[error("cannot find out whether a keeper runs on this node")]
    Unknown(#[from] KeeperError),
}

/// The keepers of a node have ended. While this value lives, none that starts becomes active.
#[derive(Debug)]
pub struct Ended {
    run_dir: RunDir,
    _lock: File,
}

/// Waits until no keeper of the node answers in the run directory, at most for `within`.
pub fn wait_for_end(run_dir: &Path, within: Duration) -> Result<Ended, EndError> {
    let run_dir = RunDir::open(run_dir)?;
    let deadline = Instant::now() + within;
    loop {
        // first without the lock, which would delay a handover
        let mut answering = find_answering(&run_dir)?;
        if answering.is_none() {
            let lock = lock(&run_dir, deadline)?;
            answering = find_answering(&run_dir)?;
            if answering.is_none() {
                return Ok(Ended {
                    run_dir,
                    _lock: lock,
                });
            }
        }
        if let Some(keeper) = answering
            && Instant::now() >= deadline
        {
            return Err(EndError::Answers(keeper));
        }
        thread::sleep(PAUSE);
    }
}

impl Ended {
    /// Removes the files in the run directory, then the directory. The directory stays if it is a mount
    /// point of this pod. What cannot be removed is logged and stays. Fails if a keeper has started.
    pub fn clear(self) -> Result<(), EndError> {
        if let Some(keeper) = find_answering(&self.run_dir)? {
            return Err(EndError::Started(keeper));
        }
        let path = self.run_dir.path();
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            // that of a keeper that is starting: those of dead ones were removed
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                continue;
            }
            if let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(%error, path = %entry.path().display(), "cannot remove a file of the run directory; it stays");
            }
        }
        if let Err(error) = fs::remove_dir(path) {
            tracing::debug!(%error, path = %path.display(), "cannot remove the run directory; it stays");
        }
        Ok(())
    }
}

fn lock(run_dir: &RunDir, deadline: Instant) -> Result<File, KeeperError> {
    run_dir
        .lock(deadline)
        .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::TimedOut.into()))
        .map_err(|source| setup("the lock of the run directory", source))
}

/// Returns the socket of a keeper that answers or hangs. Removes those of dead keepers.
fn find_answering(run_dir: &RunDir) -> Result<Option<PathBuf>, KeeperError> {
    let failed = |source| setup("the list of other keepers", source);
    for keeper in run_dir.sockets().map_err(failed)? {
        match socket::connect(&keeper, SocketType::SEQPACKET, PAUSE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // a socket file gets its name only once its keeper listens, so this keeper is dead
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                socket::remove_if_there(&keeper).map_err(failed)?;
            }
            _ => return Ok(Some(keeper)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
