//! Follows the directory of CNI results while the enforcer runs: the one of a list that the container
//! runtime uses.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portmapping_dataplane::interface_addresses;
use portmapping_enforcer_core::SandboxUpdate;
use portmapping_runtime::deadline::chain;
use portmapping_shared::remedy;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::directories::{Directories, is_empty};
use super::directory_watch::{DirectoryChange, DirectoryWatch, DirectoryWatchError};
use super::file::{self, FileError};
use super::result;
use super::result_files::{Reading, ResultFiles};
use crate::metrics::Metrics;

/// Updates that may wait for the reconciler. While the queue is full no file is read. If the kernel's
/// own queue fills up in that time, all files are read again.
pub const SANDBOX_QUEUE: usize = 256;
/// How often a missing directory is looked for, and how often the path of a watched one is checked.
const CHECK_PERIOD: Duration = Duration::from_secs(2);

/// Up to this many files are read on this thread: they were just written and are still in the page
/// cache, and another thread would be scheduled late on a busy node.
const MAX_INLINE_READS: usize = 8;

type OwnAddresses = nix::Result<BTreeSet<IpAddr>>;

/// Why the directory cannot be followed.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("no directory of {0} exists")]
    NoneExists(String),
    #[error("{} is empty, and {} was changed later", .empty.display(), .other.display())]
    OtherInUse { empty: PathBuf, other: PathBuf },
    #[error("{} was removed or replaced", .0.display())]
    Lost(PathBuf),
    #[error("cannot watch {}{}", .path.display(), remedy(.source))]
    Unwatchable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Limit(DirectoryWatchError),
    #[error("cannot list {}{}", .path.display(), remedy(.source))]
    Unlistable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("a task that reads files panicked")]
    Task(#[from] tokio::task::JoinError),
    #[error("the reconciler has ended")]
    Closed,
}

/// Follows one of these directories of CNI results and sends updates of sandboxes until the token is
/// cancelled. While none of them can be read, pods are mapped by the addresses in their status.
pub async fn watch(
    dirs: Vec<PathBuf>,
    updates: mpsc::Sender<SandboxUpdate>,
    metrics: Metrics,
    token: CancellationToken,
) {
    let watcher = Watcher {
        dir: Path::new("").into(),
        dirs: Directories::new(dirs),
        files: ResultFiles::default(),
        updates,
        metrics,
        reported_missing: false,
        own: Arc::new(Ok(BTreeSet::new())),
        stale: false,
        asking: None,
    };
    token.run_until_cancelled(watcher.run()).await;
}

struct Watcher {
    /// The directory that is followed.
    dir: Arc<Path>,
    /// The directories to choose from.
    dirs: Directories,
    files: ResultFiles,
    updates: mpsc::Sender<SandboxUpdate>,
    metrics: Metrics,
    /// It was logged that the directory cannot be followed.
    reported_missing: bool,
    /// The node's own addresses, which no pod has. They are read ahead of time: the read waits for
    /// every change of the node's interfaces, and starting pods change them.
    own: Arc<OwnAddresses>,
    /// Pods have started since they were read: read them again.
    stale: bool,
    /// The read that is running.
    asking: Option<JoinHandle<OwnAddresses>>,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let Err(error) = match self.dirs.in_use() {
                Some(dir) => {
                    self.dir = dir;
                    self.follow().await
                }
                None => Err(none_in_use(&self.dirs)),
            };
            self.metrics.set_cni_watched(false);
            if matches!(error, WatchError::Closed) {
                return;
            }
            if let WatchError::OtherInUse { .. } = error {
                tracing::info!(reason = %error, "changing to another directory of CNI results");
                continue;
            }
            if std::mem::replace(&mut self.reported_missing, true) {
                tracing::debug!(error = chain(&error), "still cannot follow CNI results");
            } else {
                tracing::warn!(
                    error = chain(&error),
                    "cannot follow CNI results (--cni-results): a pod is mapped once its status has an \
                     address, which is later; trying again"
                );
            }
            match error {
                WatchError::Lost(_) => {}
                WatchError::Missing(_) | WatchError::NoneExists(_) => {
                    self.dirs.arrival(CHECK_PERIOD).await;
                }
                _ => tokio::time::sleep(CHECK_PERIOD).await,
            }
        }
    }

    /// Sends updates of everything that happens in the directory, first the list of what is there.
    async fn follow(&mut self) -> Result<Infallible, WatchError> {
        // the watch starts before the list: a file written in between is seen twice, not missed
        let mut changes = DirectoryWatch::of_results(&self.dir).map_err(|error| match error {
            DirectoryWatchError::Watch { source } => self.watch_error(source),
            limit => WatchError::Limit(limit),
        })?;
        let identity = self.identity()?;
        self.relist().await?;
        self.reported_missing = false;
        self.metrics.set_cni_watched(true);
        tracing::info!(dir = %self.dir.display(), "following CNI results");
        let mut check = tokio::time::interval(CHECK_PERIOD);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // both arms are cancel-safe
            tokio::select! {
                batch = changes.next() => {
                    let batch = batch.map_err(|source| self.watch_error(source))?;
                    self.read_changes(batch).await?;
                }
                // inotify reports neither a renamed parent nor a removed directory that stays mounted
                _ = check.tick() => {
                    let now = self.identity();
                    if !now.as_ref().is_ok_and(|now| *now == identity) {
                        self.read_rest(&mut changes).await?;
                        return Err(now.err().unwrap_or_else(|| self.lost()));
                    }
                    self.check_choice()?;
                    self.refresh_own_addresses().await?;
                }
            }
        }
    }

    /// Reads the node's addresses again if pods have started since, without waiting for the result.
    async fn refresh_own_addresses(&mut self) -> Result<(), WatchError> {
        if let Some(answered) = self.asking.take_if(|asking| asking.is_finished()) {
            self.own = Arc::new(answered.await?);
        }
        if self.asking.is_none() && std::mem::take(&mut self.stale) {
            self.asking = Some(tokio::task::spawn_blocking(interface_addresses));
        }
        Ok(())
    }

    /// Fails when another directory is in use. A directory with results is never left: the sandboxes in
    /// it would look removed.
    fn check_choice(&self) -> Result<(), WatchError> {
        match self.dirs.in_use().filter(|_| is_empty(&self.dir)) {
            Some(other) if other != self.dir => Err(WatchError::OtherInUse {
                empty: self.dir.to_path_buf(),
                other: other.to_path_buf(),
            }),
            _ => Ok(()),
        }
    }

    async fn read_changes(&mut self, batch: Vec<DirectoryChange>) -> Result<(), WatchError> {
        let mut written = Vec::new();
        for change in batch {
            match change {
                DirectoryChange::Written(name) => written.push(name),
                DirectoryChange::Removed(name) => {
                    self.read(std::mem::take(&mut written)).await?;
                    let gone = self.files.removed(&name);
                    self.metrics.record_cni_result("removed");
                    self.send(gone).await?;
                }
                DirectoryChange::Overflow => {
                    written.clear();
                    tracing::info!("the kernel dropped changes of CNI results; reading all files");
                    self.relist().await?;
                }
                DirectoryChange::Lost => return Err(self.lost()),
            }
        }
        self.read(written).await
    }

    /// Reads the changes that were queued before the directory was lost: among them removals, which
    /// free addresses.
    async fn read_rest(&mut self, changes: &mut DirectoryWatch) -> Result<(), WatchError> {
        loop {
            let rest = changes
                .queued()
                .map_err(|source| self.watch_error(source))?;
            if rest.is_empty() {
                return Ok(());
            }
            self.read_changes(rest).await?;
        }
    }

    fn lost(&self) -> WatchError {
        WatchError::Lost(self.dir.to_path_buf())
    }

    /// Reads some files and sends the updates.
    async fn read(&mut self, names: Vec<OsString>) -> Result<(), WatchError> {
        if names.is_empty() {
            return Ok(());
        }
        self.stale = true;
        let readings = if names.len() <= MAX_INLINE_READS {
            read_files(&self.dir, &self.own, names)
        } else {
            let (dir, own) = (Arc::clone(&self.dir), Arc::clone(&self.own));
            let reading = move || read_files(&dir, &own, names);
            tokio::task::spawn_blocking(reading).await?
        };
        for (name, reading) in readings {
            self.count(&reading);
            let updates = self.files.read(&name, reading);
            self.send(updates).await?;
        }
        Ok(())
    }

    /// Reads all files and sends the complete list of sandboxes.
    async fn relist(&mut self) -> Result<(), WatchError> {
        let dir = Arc::clone(&self.dir);
        let listing = move || {
            let own = interface_addresses();
            (
                file::names(&dir).map(|names| read_files(&dir, &own, names)),
                own,
            )
        };
        let (listed, own) = tokio::task::spawn_blocking(listing).await?;
        self.own = Arc::new(own);
        let readings = listed.map_err(|source| WatchError::Unlistable {
            path: self.dir.to_path_buf(),
            source,
        })?;
        for (_, reading) in &readings {
            self.count(reading);
        }
        let list = self.files.listed(readings);
        self.send([list]).await
    }

    async fn send(&self, all: impl IntoIterator<Item = SandboxUpdate>) -> Result<(), WatchError> {
        for update in all {
            // waits while the queue is full
            self.updates
                .send(update)
                .await
                .map_err(|_| WatchError::Closed)?;
        }
        Ok(())
    }

    fn count(&self, reading: &Reading) {
        match reading {
            Reading::Sandbox(_) => self.metrics.record_cni_result("sandbox"),
            Reading::Other => self.metrics.record_cni_result("other"),
            Reading::Unusable(_) => self.metrics.record_cni_result("unusable"),
            Reading::Gone => {}
        }
    }

    /// Returns the directory that the path leads to now, as device and inode.
    fn identity(&self) -> Result<(u64, u64), WatchError> {
        match std::fs::metadata(&self.dir) {
            // a removed directory that is still mounted: no links
            Ok(found) if found.nlink() > 0 => Ok((found.dev(), found.ino())),
            Ok(_) => Err(WatchError::Missing(self.dir.to_path_buf())),
            Err(error) => Err(self.watch_error(error)),
        }
    }

    fn watch_error(&self, source: std::io::Error) -> WatchError {
        let path = self.dir.to_path_buf();
        if source.kind() == ErrorKind::NotFound {
            WatchError::Missing(path)
        } else {
            WatchError::Unwatchable { path, source }
        }
    }
}

/// Returns why none of the directories is followed. Under `SELinux` a denied one looks like a missing one
/// to a program that ignores the error.
fn none_in_use(dirs: &Directories) -> WatchError {
    match dirs.denied() {
        Some((path, source)) => WatchError::Unwatchable { path, source },
        None => WatchError::NoneExists(dirs.to_string()),
    }
}

/// Reads and parses files; blocks.
fn read_files(dir: &Path, own: &OwnAddresses, names: Vec<OsString>) -> Vec<(OsString, Reading)> {
    let read = |name: OsString| {
        let reading = match (own, file::read(dir, &name)) {
            (_, Err(FileError::Gone)) => Reading::Gone,
            (_, Err(error)) => Reading::Unusable(chain(&error)),
            (Err(error), _) => {
                Reading::Unusable(format!("cannot read the addresses of this node: {error}"))
            }
            (Ok(own), Ok(content)) => {
                tracing::debug!(file = ?name, age_us = age(content.written), "a CNI result was read");
                match result::parse(&content.bytes, content.written, |ip| own.contains(&ip)) {
                    Ok(Some(sandbox)) => Reading::Sandbox(sandbox),
                    Ok(None) => Reading::Other,
                    Err(unusable) => Reading::Unusable(unusable.to_string()),
                }
            }
        };
        (name, reading)
    };
    names.into_iter().map(read).collect()
}

/// Returns the microseconds since a file was written.
fn age(written: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let age = now.unwrap_or_default().saturating_sub(written);
    u64::try_from(age.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
