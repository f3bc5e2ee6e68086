//! A Kubernetes client that neither hangs nor hides failures.

use std::time::Duration;

use kube::config::InferConfigError;
use kube::{Client, Config};

/// Limit for a TCP and TLS connection to the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for sending one request.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

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
    // else the time a pooled connection sat idle counts against the next answer
    config.reset_reader_on_write = true;
    config.default_retry = false;
    Client::try_from(config).map_err(ClientError::Build)
}
