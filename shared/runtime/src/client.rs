//! A Kubernetes client that neither hangs nor hides failures.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::InferConfigError;
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// Limit for a TCP and TLS connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for sending one request.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// After this much silence the kernel asks the other side whether the connection still is one. A watch
/// is silent for a minute at a time, and where connection tracking has forgotten it (a flush, a
/// gateway that failed over) nobody else tells this side that it is gone.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// As many without an answer end the connection.
const KEEPALIVE_RETRIES: u32 = 5;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a service account.
    #[error("found no way to the cluster: neither a kubeconfig nor a service account")]
    Config(#[source] InferConfigError),
    /// The configuration cannot be used.
    #[error("the cluster's configuration cannot be used")]
    Build(#[source] kube::Error),
}

/// Connects with the kubeconfig of `KUBECONFIG`, else as the pod's service account.
///
/// `read_timeout` is the longest silence on a connection: for plain calls a few seconds more than
/// the limit of [`crate::within`], for watches more than the time between bookmarks (a minute).
/// The client does not retry by itself: kube's own policy waits up to a thousand seconds between
/// tries, which would hide an outage from the caller, its metrics and its deadline.
pub async fn connect(read_timeout: Duration) -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(ClientError::Config)?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    config.read_timeout = Some(read_timeout);
    build(config).map_err(ClientError::Build)
}

/// kube's own stack has no place for keepalive, so this is that stack without its retries.
fn build(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_read_timeout(config.read_timeout);
    // else the time a pooled connection sat idle counts against the next answer
    connector.set_reset_reader_on_write(true);
    let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

#[cfg(test)]
mod tests;
