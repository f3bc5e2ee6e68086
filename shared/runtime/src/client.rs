//! The Kubernetes API: kube's client with time limits, and a token that is cancelled when the
//! cluster's CA changes.
//!
//! kube reads the pod's service account, does TLS, and reads the token again every minute. It has
//! no setting for keepalive, so the connector is built here.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::InClusterError;
use kube::{Client, Config};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_util::sync::CancellationToken;
use tower::{BoxError, ServiceBuilder};

/// Limit for a TCP and TLS connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for sending one request.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// After this much silence the kernel probes whether the connection still exists. A watch is silent
/// for a minute at a time. Where connection tracking has lost its entry (a flush, a gateway that
/// failed over), nothing else reports that the connection is gone.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Time between two probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// This many probes without an answer end the connection.
const KEEPALIVE_RETRIES: u32 = 5;
/// `TCP_USER_TIMEOUT`: data that is not acknowledged for this long ends the connection. Without it
/// the kernel sends the data again for 15 minutes (tcp(7), `tcp_retries2`).
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Time between two reads of the CA file. The kubelet takes up to a minute to update it.
const CA_PERIOD: Duration = Duration::from_secs(10);
/// Longest wait between a change of the CA and the end of the program: the programs of all nodes
/// see the change within the same minute, and must not all start again at the same moment.
const CA_WAIT: Duration = Duration::from_mins(1);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The program does not run in a pod, or the pod has no service account.
    #[error("cannot read the service account; run this program in a pod that has one")]
    ServiceAccount(#[source] InClusterError),
    /// No certificate identifies the API server.
    #[error("{} holds no certificate that can be used as a CA", path.display())]
    NoCa {
        /// The CA file.
        path: PathBuf,
    },
    /// kube refuses the CA or the token.
    #[error("cannot use the CA or the token of the service account")]
    Credentials(#[source] kube::Error),
}

/// The API server as the pod's service account reaches it.
#[derive(Debug)]
pub struct ApiServer {
    config: Config,
    ca: Ca,
}

/// The CA file and the certificates that were in it at the start, in DER.
#[derive(Debug)]
struct Ca {
    path: PathBuf,
    certificates: Vec<Vec<u8>>,
}

impl ApiServer {
    /// Reads the pod's service account.
    pub fn in_cluster() -> Result<Self, ClientError> {
        Self::new(Config::incluster().map_err(ClientError::ServiceAccount)?)
    }

    fn new(mut config: Config) -> Result<Self, ClientError> {
        // kube would read the file again by itself, and accept none of it for one bad certificate
        let path = config.root_cert_file.take().unwrap_or_default();
        let certificates = config.root_cert.take().unwrap_or_default();
        let usable = usable(&certificates, &path);
        if usable.is_empty() {
            return Err(ClientError::NoCa { path });
        }
        config.root_cert = Some(usable);
        Ok(Self {
            config,
            ca: Ca { path, certificates },
        })
    }

    /// Returns a client for plain calls, which share connections.
    ///
    /// `idle` is the longest silence within a call: a few seconds more than the limit of
    /// [`crate::within`]. The client does not retry: kube's own policy waits up to 1,000 s between
    /// attempts, which would hide an outage from the caller, its metrics and its deadline.
    pub fn client(&self, idle: Duration) -> Result<Client, ClientError> {
        self.build(idle, true)
    }

    /// Returns a client whose every request has a connection of its own: for watches.
    ///
    /// A watch that ended because connection tracking lost its entry would find shared connections
    /// dead as well. `idle` is more than the time between bookmarks, which is a minute.
    pub fn watch_client(&self, idle: Duration) -> Result<Client, ClientError> {
        self.build(idle, false)
    }

    fn build(&self, idle: Duration, shared: bool) -> Result<Client, ClientError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let tls = self.config.rustls_https_connector_with_connector(tcp);
        let mut connector = TimeoutConnector::new(tls.map_err(ClientError::Credentials)?);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_write_timeout(Some(WRITE_TIMEOUT));
        connector.set_read_timeout(Some(idle));
        // otherwise the time that a shared connection was unused counts against the next answer
        connector.set_reset_reader_on_write(true);
        let mut http = HttpClient::builder(TokioExecutor::new());
        if !shared {
            http.pool_max_idle_per_host(0);
        }
        let token = self.config.auth_layer().map_err(ClientError::Credentials)?;
        let service = ServiceBuilder::new()
            .layer(self.config.base_uri_layer())
            .option_layer(token)
            .map_err(BoxError::from)
            .service(http.build::<_, Body>(connector));
        Ok(Client::new(service, &self.config.default_namespace))
    }

    /// Cancels the token after the CA file has changed and a random wait of up to a minute. The caller
    /// then ends, and the kubelet starts the program again; or it makes new clients, which read the
    /// new CA. Returns when the token is cancelled.
    pub async fn end_on_new_ca(self, token: CancellationToken) {
        let wait = rand::random_range(Duration::ZERO..=CA_WAIT);
        self.ca.end_on_change(wait, token).await;
    }
}

impl Ca {
    async fn end_on_change(self, wait: Duration, token: CancellationToken) {
        let watched = token.run_until_cancelled(async {
            self.changed().await;
            tracing::warn!(
                path = %self.path.display(), seconds = wait.as_secs(),
                "the cluster's CA has changed; the new one is used after a wait"
            );
            tokio::time::sleep(wait).await;
        });
        if watched.await.is_some() {
            token.cancel();
        }
    }

    /// Returns once the file holds other certificates than at the start. A file that cannot be read or
    /// has no usable certificate is no change: a program that started with it would fail.
    async fn changed(&self) {
        let mut ticks = tokio::time::interval(CA_PERIOD);
        loop {
            ticks.tick().await;
            match read(&self.path) {
                Ok(now) if now == self.certificates || usable(&now, &self.path).is_empty() => {}
                Ok(_changed) => return,
                Err(error) => {
                    tracing::warn!(%error, path = %self.path.display(), "cannot read the cluster's CA; going on with the one from the start");
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let pem = fs::read(path)?;
    CertificateDer::pem_slice_iter(&pem)
        .map(|certificate| Ok(certificate.map_err(io::Error::other)?.to_vec()))
        .collect()
}

/// Returns the certificates that rustls accepts as a CA. A refused one is skipped: the bundle may
/// be the sum of several CAs, and the others still work.
fn usable(certificates: &[Vec<u8>], path: &Path) -> Vec<Vec<u8>> {
    let mut usable = certificates.to_vec();
    let mut number = 0;
    usable.retain(|certificate| {
        number += 1;
        let added = RootCertStore::empty().add(certificate.as_slice().into());
        if let Err(error) = &added {
            tracing::warn!(%error, number, path = %path.display(), "skipping a certificate of the cluster's CA: it cannot be used as a CA");
        }
        added.is_ok()
    });
    usable
}

#[cfg(test)]
mod tests;
