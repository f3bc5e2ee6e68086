//! Whom a connection to the API server believes: the cluster's CA, which may be replaced meanwhile.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fs, io};

use http::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower::{BoxError, Service};

/// Why the certificates of a CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is not there, or not for us.
    #[error("cannot read the cluster's CA from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is something else in it than certificates.
    #[error("{} holds something else than PEM certificates", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: pem::Error,
    },
    /// A certificate in it cannot be one of a CA.
    #[error("a certificate in {} is not one of a CA", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// There is none in it.
    #[error("{} holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// The CA's certificates in a file, read again for each new connection.
#[derive(Debug)]
pub(super) struct Trust {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    pem: Vec<u8>,
    tls: Arc<ClientConfig>,
}

impl Trust {
    pub(super) fn read(path: PathBuf) -> Result<Self, TrustError> {
        let pem = read(&path)?;
        let tls = believing(&path, &pem)?;
        Ok(Self {
            path,
            known: Mutex::new(Known { pem, tls }),
        })
    }

    /// As the file says now; a file that cannot be used changes nothing.
    pub(super) fn current(&self) -> Arc<ClientConfig> {
        let mut known = self.known.lock();
        let changed = match read(&self.path) {
            Ok(pem) if pem == known.pem => return Arc::clone(&known.tls),
            Ok(pem) => believing(&self.path, &pem).map(|tls| Known { pem, tls }),
            Err(error) => Err(error),
        };
        match changed {
            Ok(changed) => {
                tracing::info!(path = %self.path.display(), "the cluster's CA has changed");
                *known = changed;
            }
            Err(error) => {
                tracing::warn!(%error, "keeping to the CA that was known before");
            }
        }
        Arc::clone(&known.tls)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    fs::read(path).map_err(|source| TrustError::Read {
        path: path.to_owned(),
        source,
    })
}

fn believing(path: &Path, pem: &[u8]) -> Result<Arc<ClientConfig>, TrustError> {
    let path = || path.to_owned();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|source| TrustError::Pem {
            path: path(),
            source,
        })?;
        roots
            .add(certificate)
            .map_err(|source| TrustError::Certificate {
                path: path(),
                source,
            })?;
    }
    if roots.is_empty() {
        return Err(TrustError::Empty { path: path() });
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Connects with TLS to whom the CA vouches for at that moment, and never without.
#[derive(Clone, Debug)]
pub(super) struct Trusting {
    pub(super) tcp: HttpConnector,
    pub(super) trust: Arc<Trust>,
}

impl Service<Uri> for Trusting {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let mut connector = HttpsConnector::from((self.tcp.clone(), self.trust.current()));
        connector.enforce_https();
        connector.call(server)
    }
}

#[cfg(test)]
mod tests;
