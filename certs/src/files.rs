//! A certificate that another program renews (cert-manager, for example), read from a mounted
//! folder.
//!
//! The folder is read again in each period: the kubelet swaps the symlink `..data` of a mounted
//! Secret, which an inotify watch on the files does not report. Whatever the folder holds, the
//! program goes on and the certificate in use stays.

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
use crate::metrics::{CA, LEAF, Metrics};
use crate::resolver::{Resolver, ResolverError};

/// Time between two reads; the kubelet itself takes up to a minute to update a Secret.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest file that is read, in bytes: a chain of a few certificates has a few KiB.
const MAX_FILE_BYTES: u64 = 256 * 1024;
/// The kubelet's link to the current version of a mounted Secret.
const VERSION_LINK: &str = "..data";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";

/// A certificate and its key in PEM, as the folder holds them.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    chain: String,
    key: String,
    /// The CA; None where the folder has no file of it.
    authority: Option<String>,
}

/// What reading the folder changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nothing: the folder holds the pair in use.
    Unchanged,
    /// Another pair is served from now on.
    New,
}

/// Why the files of the folder are not served. The pair in use stays.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}; mount a Secret of type kubernetes.io/tls", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// rustls refuses the files, for example because the key belongs to another certificate.
    #[error("cannot serve the certificate and the key in {}", folder.display())]
    Pair {
        /// The folder.
        folder: PathBuf,
        /// The cause.
        #[source]
        source: ResolverError,
    },
    /// The certificate cannot be parsed.
    #[error("{CERTIFICATE} in {} is not an X.509 certificate", folder.display())]
    NoCertificate {
        /// The folder.
        folder: PathBuf,
    },
    /// It has expired, and the one in use has not.
    #[error("{CERTIFICATE} in {} expired at {expired}; check the program that renews it", folder.display())]
    Expired {
        /// The folder.
        folder: PathBuf,
        /// When it expired.
        expired: OffsetDateTime,
    },
    /// The task that reads the files panicked.
    #[error("the task that reads the certificate failed")]
    Task(#[from] tokio::task::JoinError),
}

/// Serves the certificate of a folder; see the module.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    names: Names,
    resolver: Arc<Resolver>,
    ready: ReadyHandle,
    metrics: Metrics,
    clock: fn() -> OffsetDateTime,
    served: Option<Served>,
    /// The last error, so that each is logged once.
    last_error: Option<String>,
}

struct Served {
    pair: Pair,
    ends: OffsetDateTime,
}

/// Leaves the key out, because the text may be logged.
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
    /// Returns a reader that has read nothing yet. It makes `ready` ready once it serves a pair.
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
            served: None,
            last_error: None,
        }
    }

    /// Reads the folder until the token is cancelled. An error never ends it.
    pub async fn run(mut self, token: CancellationToken) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let reading = async {
            loop {
                ticks.tick().await;
                // a file system that hangs stops this loop, never the server
                let _reported = self.load().await;
            }
        };
        token.run_until_cancelled(reading).await;
    }

    /// Reads the folder once, and serves what is new.
    pub async fn load(&mut self) -> Result<Loaded, FilesError> {
        let folder = self.folder.clone();
        let found = tokio::task::spawn_blocking(move || read(&folder)).await;
        let loaded = found
            .map_err(FilesError::from)
            .and_then(|pair| self.serve(pair?));
        self.report(&loaded);
        loaded
    }

    fn serve(&mut self, pair: Pair) -> Result<Loaded, FilesError> {
        if self.served.as_ref().is_some_and(|it| it.pair == pair) {
            return Ok(Loaded::Unchanged);
        }
        let folder = || self.folder.clone();
        let leaf = material::summary(&pair.chain)
            .ok_or_else(|| FilesError::NoCertificate { folder: folder() })?;
        let now = (self.clock)();
        if leaf.ends <= now && self.served.as_ref().is_some_and(|it| it.ends > now) {
            return Err(FilesError::Expired {
                folder: folder(),
                expired: leaf.ends,
            });
        }
        // the old pair stays where the key belongs to another certificate
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
                "the certificate does not cover the name of the service; the API server will refuse it"
            );
        }
        if leaf.ends <= now {
            tracing::warn!(expired = %leaf.ends, "serving an expired certificate, because there is no other");
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
        Ok(Loaded::New)
    }

    /// Counts each error, and logs it once.
    fn report(&mut self, loaded: &Result<Loaded, FilesError>) {
        let Err(error) = loaded else {
            self.last_error = None;
            return;
        };
        let operation = [("operation", "files")];
        self.metrics.errors.get_or_create(&operation).inc();
        let text = chain(error);
        if self.served.is_none() {
            self.ready.wait_for(text.as_str());
        }
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "certificate files: reading them again later");
            self.last_error = Some(text);
        }
    }
}

/// Reads the files of one version. The kubelet writes the target of `..data` completely before it
/// swaps the link, and removes the old one afterwards.
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
    // opening a FIFO would wait for a writer
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    let length = File::open(path)?
        .take(MAX_FILE_BYTES)
        .read_to_string(&mut text)?;
    if length as u64 == MAX_FILE_BYTES {
        return Err(io::Error::other(
            "it is longer than any chain of certificates",
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
