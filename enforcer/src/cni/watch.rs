//! Follows the directory of results, for as long as the enforcer runs.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::socket::SockaddrStorage;
use portmapping_enforcer_core::SandboxUpdate;
use portmapping_runtime::deadline::chain;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::directory_watch::{Change, Changes};
use super::file::{self, FileError};
use super::result;
use super::result_files::{Known, Reading};
use crate::metrics::Metrics;

/// News that may wait for the reconciler. While the queue is full nothing is read; should the
/// kernel's own queue fill up behind it, everything is read anew.
pub const SANDBOX_QUEUE: usize = 256;
/// How long a missing directory is left alone, and how often a watched one is compared with what
/// its path leads to.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// As many files are read without another thread, whose turn would come late on a busy node: they
/// were written a moment ago, and are still in memory.
const AT_ONCE: usize = 8;

type OwnAddresses = nix::Result<HashSet<IpAddr>>;

/// Why the directory cannot be followed, now or no longer.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("{} is not there", .0.display())]
    Missing(PathBuf),
    #[error("{} was removed or replaced", .0.display())]
    Lost(PathBuf),
    #[error("{} cannot be watched", .path.display())]
    Unwatchable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} cannot be listed", .path.display())]
    Unlistable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("a reading task ended badly")]
    Task(#[from] tokio::task::JoinError),
    #[error("nobody wants news of sandboxes any more")]
    Closed,
}

/// Follows a directory of CNI results, tells of the sandboxes in it, and never gives up: while it
/// is missing or unreadable, pods are mapped by the addresses in their status.
pub async fn watch(
    dir: PathBuf,
    news: mpsc::Sender<SandboxUpdate>,
    metrics: Metrics,
    token: CancellationToken,
) {
    let watcher = Watcher {
        dir: dir.into(),
        known: Known::default(),
        news,
        metrics,
        missed: false,
        own: Arc::new(Ok(HashSet::new())),
        stale: false,
        asking: None,
    };
    token.run_until_cancelled(watcher.run()).await;
}

struct Watcher {
    dir: Arc<Path>,
    known: Known,
    news: mpsc::Sender<SandboxUpdate>,
    metrics: Metrics,
    /// Told already that there is nothing to follow.
    missed: bool,
    /// The node's own addresses, which no pod has. Asking for them waits for whoever changes the
    /// node's interfaces, which is what starting pods do: it is done beforehand.
    own: Arc<OwnAddresses>,
    /// They are to be asked for again.
    stale: bool,
    /// They are being asked for.
    asking: Option<JoinHandle<OwnAddresses>>,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let Err(error) = self.follow().await;
            self.metrics.cni_watched(false);
            if matches!(error, WatchError::Closed) {
                return;
            }
            if std::mem::replace(&mut self.missed, true) {
                tracing::debug!(error = chain(&error), "still no CNI results");
            } else {
                tracing::warn!(
                    error = chain(&error),
                    "no CNI results to follow: pods are mapped once their status shows an address, \
                     which is later; --cni-results names the directory that the container runtime \
                     writes to"
                );
            }
            match error {
                WatchError::Lost(_) => {}
                WatchError::Missing(_) => self.until_it_appears().await,
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Tells of everything that happens in the directory, beginning with what is there.
    async fn follow(&mut self) -> Result<Infallible, WatchError> {
        // watched before it is listed: what is written in between is seen twice rather than never
        let mut changes = Changes::in_results(&self.dir).map_err(|source| self.refused(source))?;
        let identity = self.identity()?;
        self.relist().await?;
        self.missed = false;
        self.metrics.cni_watched(true);
        tracing::info!(dir = %self.dir.display(), "following CNI results");
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // both arms are cancel-safe
            tokio::select! {
                batch = changes.next() => {
                    let batch = batch.map_err(|source| self.refused(source))?;
                    self.take(batch).await?;
                }
                // an open mount of a removed directory, a renamed parent: no event tells of these
                _ = look.tick() => {
                    let now = self.identity();
                    if !now.as_ref().is_ok_and(|now| *now == identity) {
                        self.take_rest(&mut changes).await?;
                        return Err(now.err().unwrap_or_else(|| self.lost()));
                    }
                    self.renew_own().await?;
                }
            }
        }
    }

    /// Asks for the node's addresses anew if pods have come since, and waits for no answer.
    async fn renew_own(&mut self) -> Result<(), WatchError> {
        if let Some(answered) = self.asking.take_if(|asking| asking.is_finished()) {
            self.own = Arc::new(answered.await?);
        }
        if self.asking.is_none() && std::mem::take(&mut self.stale) {
            self.asking = Some(tokio::task::spawn_blocking(own_addresses));
        }
        Ok(())
    }

    async fn until_it_appears(&self) {
        let arrivals = self.dir.parent().map(Changes::arrivals);
        let arrived = async {
            match arrivals {
                // the watch was there first: whatever the directory does now is told
                Some(Ok(mut arrivals)) if self.identity().is_err() => arrivals.next().await,
                Some(Ok(_)) => Ok(Vec::new()),
                Some(Err(_)) | None => std::future::pending().await,
            }
        };
        // late or never: it is looked for again
        let _ = tokio::time::timeout(LOOK_EVERY, arrived).await;
    }

    async fn take(&mut self, batch: Vec<Change>) -> Result<(), WatchError> {
        let mut written = Vec::new();
        for change in batch {
            match change {
                Change::Written(name) => written.push(name),
                Change::Removed(name) => {
                    self.read(std::mem::take(&mut written)).await?;
                    let gone = self.known.removed(&name);
                    self.metrics.cni_result("removed");
                    self.tell(gone).await?;
                }
                Change::Overflow => {
                    written.clear();
                    tracing::info!("more CNI results changed than could be followed; reading all");
                    self.relist().await?;
                }
                Change::Lost => return Err(self.lost()),
            }
        }
        self.read(written).await
    }

    /// What happened in a directory before it went: addresses that were given back above all.
    async fn take_rest(&mut self, changes: &mut Changes) -> Result<(), WatchError> {
        loop {
            let rest = changes.queued().map_err(|source| self.refused(source))?;
            if rest.is_empty() {
                return Ok(());
            }
            self.take(rest).await?;
        }
    }

    fn lost(&self) -> WatchError {
        WatchError::Lost(self.dir.to_path_buf())
    }

    /// Reads some files and tells what is new.
    async fn read(&mut self, names: Vec<OsString>) -> Result<(), WatchError> {
        if names.is_empty() {
            return Ok(());
        }
        self.stale = true;
        let readings = if names.len() <= AT_ONCE {
            read_files(&self.dir, &self.own, names)
        } else {
            let (dir, own) = (Arc::clone(&self.dir), Arc::clone(&self.own));
            let reading = move || read_files(&dir, &own, names);
            tokio::task::spawn_blocking(reading).await?
        };
        for (name, reading) in readings {
            self.count(&reading);
            let news = self.known.read(&name, reading);
            self.tell(news).await?;
        }
        Ok(())
    }

    /// Reads all files and tells of all sandboxes.
    async fn relist(&mut self) -> Result<(), WatchError> {
        let dir = Arc::clone(&self.dir);
        let listing = move || {
            let own = own_addresses();
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
        let news = self.known.listed(readings);
        self.tell([news]).await
    }

    async fn tell(&self, all: impl IntoIterator<Item = SandboxUpdate>) -> Result<(), WatchError> {
        for news in all {
            // waits while the queue is full
            self.news.send(news).await.map_err(|_| WatchError::Closed)?;
        }
        Ok(())
    }

    fn count(&self, reading: &Reading) {
        match reading {
            Reading::Sandbox(_) => self.metrics.cni_result("sandbox"),
            Reading::Other => self.metrics.cni_result("other"),
            Reading::Unusable(_) => self.metrics.cni_result("unusable"),
            Reading::Gone => {}
        }
    }

    /// Which directory the path leads to now: device and inode.
    fn identity(&self) -> Result<(u64, u64), WatchError> {
        match std::fs::metadata(&self.dir) {
            // a mount keeps a removed directory: it exists, and nobody can write to it
            Ok(found) if found.nlink() > 0 => Ok((found.dev(), found.ino())),
            Ok(_) => Err(WatchError::Missing(self.dir.to_path_buf())),
            Err(error) => Err(self.refused(error)),
        }
    }

    fn refused(&self, source: std::io::Error) -> WatchError {
        let path = self.dir.to_path_buf();
        if source.kind() == ErrorKind::NotFound {
            WatchError::Missing(path)
        } else {
            WatchError::Unwatchable { path, source }
        }
    }
}

/// Reads and parses; blocks.
fn read_files(dir: &Path, own: &OwnAddresses, names: Vec<OsString>) -> Vec<(OsString, Reading)> {
    let read = |name: OsString| {
        let reading = match (own, file::read(dir, &name)) {
            (_, Err(FileError::Gone)) => Reading::Gone,
            (_, Err(error)) => Reading::Unusable(chain(&error)),
            (Err(error), _) => Reading::Unusable(format!("this node has no addresses: {error}")),
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

/// Microseconds since a file was written.
fn age(written: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let age = now.unwrap_or_default().saturating_sub(written);
    u64::try_from(age.as_micros()).unwrap_or(u64::MAX)
}

/// The addresses of this node's own interfaces.
fn own_addresses() -> OwnAddresses {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let address = |storage: SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    let addresses = interfaces.filter_map(|interface| address(interface.address?));
    Ok(addresses.collect())
}
