//! A certificate that something else renews (cert-manager, say), read from a mounted folder.
//!
//! The folder is looked at again and again by a monotonic tick: the kubelet swaps the symlink
//! `..data` of a mounted Secret, which an inotify watch on the files does not see. Nothing found
//! there ends the program, or takes away the certificate being served.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use portmapping_runtime::ReadyHandle;
use portmapping_runtime::deadline::chain;
use time::OffsetDateTime;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::material::{self, Names};
use crate::metrics::{CA, LEAF, Metrics, Operation};
use crate::resolver::{Resolver, ResolverError};

/// Time between two looks; the kubelet itself takes up to a minute to bring a new Secret.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest file that is read, in bytes: a chain of a few certificates is a few KiB.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Where the kubelet keeps the current version of a mounted Secret.
const VERSION_LINK: &str = "..data";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";

/// A certificate and its key as PEM text, as they lie in the folder.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    chain: String,
    key: String,
    /// Of the authority; None where the folder does not say.
    authority: Option<String>,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The pair that is being served already.
    Same,
    /// Another pair, served from now on.
    Loaded,
}

/// Why what lies in the folder is not served. What is served stays served.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}; a Secret of type kubernetes.io/tls has it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No pair that TLS could use: rubbish, or halves of two pairs.
    #[error("cannot serve what is in {}", folder.display())]
    Pair {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        #[source]
        source: ResolverError,
    },
    /// No certificate that can be judged.
    #[error("{CERTIFICATE} in {} is no X.509 certificate", folder.display())]
    NoCertificate {
        /// The folder.
        folder: PathBuf,
    },
    /// It is over, and the one being served is not.
    #[error("{CERTIFICATE} in {} ended at {ended}; whoever renews it is late", folder.display())]
    Ended {
        /// The folder.
        folder: PathBuf,
        /// Its end.
        ended: OffsetDateTime,
    },
    /// The reading task died.
    #[error("reading the certificate did not come to its end")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves what lies in a folder; see the module.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    names: Names,
    resolver: Arc<Resolver>,
    ready: ReadyHandle,
    metrics: Metrics,
    clock: fn() -> OffsetDateTime,
    period: Duration,
    served: Option<Served>,
    /// What the last look complained of; said once.
    complaint: Option<String>,
}

struct Served {
    pair: Pair,
    ends: OffsetDateTime,
}

/// Without the key: this may end up in a log.
impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let chain = &self.pair.chain;
        f.debug_struct("Served")
            .field("chain", chain)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

impl Files {
    /// A folder that has not been looked at. `ready` once a pair of it is served.
    #[must_use]
    pub fn new(
        folder: PathBuf,
        names: Names,
        resolver: Arc<Resolver>,
        ready: ReadyHandle,
        metrics: Metrics,
    ) -> Self {
        Self {
            folder,
            names,
            resolver,
            ready,
            metrics,
            clock: OffsetDateTime::now_utc,
            period: PERIOD,
            served: None,
            complaint: None,
        }
    }

    /// Looks until the token is cancelled. Never ends on an error.
    pub async fn run(mut self, token: CancellationToken) {
        let mut ticks = tokio::time::interval(self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = token.cancelled() => return,
                _now = ticks.tick() => {}
            }
            // a hanging file system holds up the looks, never the server
            tokio::select! {
                () = token.cancelled() => return,
                _said = self.look() => {}
            }
        }
    }

    /// One look at the folder.
    pub async fn look(&mut self) -> Result<Look, FilesError> {
        let folder = self.folder.clone();
        let found = tokio::task::spawn_blocking(move || read(&folder)).await;
        let looked = found
            .map_err(FilesError::from)
            .and_then(|pair| self.take(pair?));
        self.report(&looked);
        looked
    }

    fn take(&mut self, pair: Pair) -> Result<Look, FilesError> {
        if self.served.as_ref().is_some_and(|it| it.pair == pair) {
            return Ok(Look::Same);
        }
        let folder = || self.folder.clone();
        let leaf = material::summary(&pair.chain)
            .ok_or_else(|| FilesError::NoCertificate { folder: folder() })?;
        let now = (self.clock)();
        if leaf.ends <= now && self.served.as_ref().is_some_and(|it| it.ends > now) {
            return Err(FilesError::Ended {
                folder: folder(),
                ended: leaf.ends,
            });
        }
        // refuses a key that does not fit: the old pair stays
        self.resolver
            .install(&pair.chain, &pair.key)
            .map_err(|source| FilesError::Pair {
                folder: folder(),
                source,
            })?;
        if let Some(name) = self.names.iter().next()
            && !leaf.dns_names.iter().any(|covered| covered == name)
        {
            tracing::warn!(
                name,
                "the certificate does not cover the service: the API server will refuse it"
            );
        }
        if leaf.ends <= now {
            tracing::warn!(ended = %leaf.ends, "serving a certificate that has ended: there is no other");
        }
        tracing::info!(until = %leaf.ends, "serving the certificate of the folder");
        self.metrics.loads.inc();
        let expiry = &self.metrics.expiry;
        expiry.get_or_create(&LEAF).set(leaf.ends.unix_timestamp());
        if let Some(end) = pair
            .authority
            .as_deref()
            .and_then(material::end_of_authority)
        {
            expiry.get_or_create(&CA).set(end.unix_timestamp());
        }
        self.ready.ready();
        self.served = Some(Served {
            pair,
            ends: leaf.ends,
        });
        Ok(Look::Loaded)
    }

    /// Counts each failed look, and says each complaint once.
    fn report(&mut self, looked: &Result<Look, FilesError>) {
        let Err(error) = looked else {
            self.complaint = None;
            return;
        };
        let operation = Operation { operation: "files" };
        self.metrics.errors.get_or_create(&operation).inc();
        let text = chain(error);
        if self.served.is_none() {
            self.ready.wait_for(text.as_str());
        }
        if self.complaint.as_ref() != Some(&text) {
            tracing::warn!(error = text, "certificate files: looking again");
            self.complaint = Some(text);
        }
    }
}

/// Reads a pair of one version: by way of `..data`'s target where there is one, which the kubelet
/// writes whole before it swaps the link, and removes only after.
fn read(folder: &Path) -> Result<Pair, FilesError> {
    let version = fs::canonicalize(folder.join(VERSION_LINK));
    let version = version.unwrap_or_else(|_none| folder.to_owned());
    let file = |name: &str| {
        let path = version.join(name);
        read_text(&path).map_err(|source| FilesError::Read { path, source })
    };
    Ok(Pair {
        chain: file(CERTIFICATE)?,
        key: file(KEY)?,
        authority: file(AUTHORITY).ok(),
    })
}

fn read_text(path: &Path) -> io::Result<String> {
    // opening a FIFO would wait for its other end
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    let length = File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)?;
    if length as u64 == MAX_FILE_BYTES {
        return Err(io::Error::other("it is far too long for a certificate"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
