//! The state folder of a cluster, and the lock that is held while a process owns it.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::config::Spec;
use super::{cgroups, lookup};
use crate::paths;

const LOCK: &str = "lock";
/// How long the logs of a cluster that ended by itself stay.
const KEEP: Duration = Duration::from_hours(24);

/// The folder of the cluster with this name.
pub(crate) fn folder(name: &str) -> PathBuf {
    paths::clusters().join(name)
}

/// Makes this process the owner of the cluster while the file is open, and writes its pid into it.
pub(crate) fn take(spec: &Spec) -> Result<File> {
    let path = spec.state.join(LOCK);
    let mut file = open(&path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("the cluster {} is already up", spec.config.name),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(file)
}

/// The pid of the process that owns the cluster, if one does.
pub(crate) fn owner(state: &Path) -> Result<Option<Pid>> {
    let path = state.join(LOCK);
    if !path.exists() {
        return Ok(None);
    }
    let mut file = open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.read_to_string(&mut text)
                .with_context(|| format!("read {}", path.display()))?;
            let pid = text.trim().parse().map_err(|_| {
                anyhow!(
                    "{} is locked but holds no pid ({:?})",
                    path.display(),
                    text.trim()
                )
            })?;
            Ok(Some(Pid::from_raw(pid)))
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// Names of all clusters that have a folder.
pub(crate) fn all() -> Vec<String> {
    let entries = fs::read_dir(paths::clusters())
        .into_iter()
        .flatten()
        .flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Ends the cluster's owner, if there is one, and removes all that a cluster leaves. True when there
/// was something to remove.
pub(crate) fn destroy(name: &str) -> Result<bool> {
    let state = folder(name);
    if !state.exists() {
        return Ok(false);
    }
    if let Some(pid) = owner(&state)? {
        end(&state, pid, Signal::SIGTERM, Duration::from_secs(20))
            .or_else(|_| end(&state, pid, Signal::SIGKILL, Duration::from_secs(10)))?;
    }
    // After a SIGKILL the kernel needs a moment to end all processes.
    let end = Instant::now() + Duration::from_secs(10);
    while lookup::any(&state) && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    let left = cgroups::sweep(&format!("portmapping-{name}"), Duration::from_secs(5));
    if !left.is_empty() {
        bail!("could not remove the cgroups {left:?}: processes of the cluster still run in them");
    }
    remove(name)?;
    Ok(true)
}

/// The file that a process locks while it boots or removes the cluster.
pub(crate) fn lock_file(name: &str) -> PathBuf {
    paths::clusters().join(format!("{name}.lock"))
}

/// Removes the folder of a cluster that has ended, and the file of its lock. A process that waits for
/// this very file and gets it is stopped by the lock in the folder.
pub(crate) fn remove(name: &str) -> Result<()> {
    let state = folder(name);
    fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
    let _ = fs::remove_file(lock_file(name));
    Ok(())
}

/// Removes the folders of clusters that ended by themselves more than a day ago. Best effort.
pub(crate) fn prune() {
    for name in all() {
        let state = folder(&name);
        let modified = fs::metadata(&state).and_then(|data| data.modified());
        let age = modified.ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > KEEP) && matches!(owner(&state), Ok(None)) {
            let _ = destroy(&name);
        }
    }
}

fn end(state: &Path, pid: Pid, signal: Signal, limit: Duration) -> Result<()> {
    // An error means that it has ended; the lock shows whether it has.
    let _ = kill(pid, signal);
    let end = Instant::now() + limit;
    while owner(state)?.is_some() {
        if Instant::now() >= end {
            bail!(
                "the cluster's owner (pid {pid}) is still there {} s after {signal}",
                limit.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
