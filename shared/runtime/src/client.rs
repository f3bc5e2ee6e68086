//! A Kubernetes client that neither hangs nor hides failures.
//!
//! It is made of kube's parts but for the credentials: those of kube come with a reader of kubeconfigs
//! that parses YAML and runs programs, 1.2 MB that no daemon in a cluster needs.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::Body;
use kube::client::middleware::BaseUriLayer;
use kube::config::InClusterError;
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use self::token::Token;
use self::trust::{Trust, Trusting};

pub use self::token::TokenError;
pub use self::trust::TrustError;

mod token;
mod trust;

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

/// After as long without an acknowledgement of what was sent, a connection is given up. The answer of
/// a watch may take minutes, and the kernel by itself repeats what is lost for a quarter of an hour.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Which connection a request goes out on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// One that an earlier request has left, if there is one: a call that fails is soon tried again.
    Kept,
    /// One of its own. A watch that broke with the node's connection tracking would find the kept
    /// ones as dead, and with nobody to miss its answer.
    New,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// This is no pod, or one without a service account.
    #[error("found no way to the cluster: this is no pod with a service account")]
    Config(#[source] InClusterError),
    /// Nothing tells the API server from somebody else.
    #[error("the API server cannot be told from somebody else")]
    Trust(#[from] TrustError),
    /// Nothing tells the API server who we are.
    #[error("cannot tell the API server who we are")]
    Token(#[from] TokenError),
    /// The service account lacks a part.
    #[error("the pod's service account has no {0}")]
    Lacks(&'static str),
}

/// Connects as the pod's service account.
///
/// `silence` is the longest silence on a connection: for plain calls a few seconds more than
/// the limit of [`crate::within`], for watches more than the time between bookmarks (a minute).
/// The client does not retry by itself: kube's own policy waits up to a thousand seconds between
/// tries, which would hide an outage from the caller, its metrics and its deadline.
pub fn connect(connections: Connections, silence: Duration) -> Result<Client, ClientError> {
    let config = Config::incluster().map_err(ClientError::Config)?;
    let ca = config.root_cert_file.ok_or(ClientError::Lacks("CA"))?;
    let token = config.auth_info.token_file;
    let credentials = Credentials {
        trust: Trust::read(ca)?,
        token: Token::read(token.ok_or(ClientError::Lacks("token"))?.into())?,
    };
    let server = Server {
        uri: config.cluster_url,
        namespace: config.default_namespace,
    };
    Ok(build(server, credentials, connections, silence))
}

/// Where the API server is.
struct Server {
    uri: Uri,
    namespace: String,
}

/// Who it is, and who we are.
struct Credentials {
    trust: Trust,
    token: Token,
}

/// kube's own stack has no place for keepalive, so this is that stack without its retries.
fn build(
    server: Server,
    credentials: Credentials,
    connections: Connections,
    silence: Duration,
) -> Client {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let trust = Arc::new(credentials.trust);
    let mut connector = TimeoutConnector::new(Trusting { tcp, trust });
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_write_timeout(Some(WRITE_TIMEOUT));
    connector.set_read_timeout(Some(silence));
    // else the time a pooled connection sat idle counts against the next answer
    connector.set_reset_reader_on_write(true);
    let mut builder = HttpClient::builder(TokioExecutor::new());
    if connections == Connections::New {
        builder.pool_max_idle_per_host(0);
    }
    let http = builder.build::<_, Body>(connector);
    let token = credentials.token;
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(server.uri))
        .map_request(move |request| token.sign(request))
        .map_err(BoxError::from)
        .service(http);
    Client::new(service, server.namespace)
}

#[cfg(test)]
mod tests;
