//! Health and metrics over plain HTTP, on a TCP port or on a unix socket.
//!
//! `/healthz` answers while the program runs, `/readyz` says 503 and names what is pending,
//! `/metrics` is for Prometheus. Merge further routes (`/state`) into [`router`]'s result.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::serve::Listener;
use http::{StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::conns::{Connections, Peer};
use crate::metrics;
use crate::ready::Readiness;

/// Connections served at once. When there are more, the peer with the most loses one: clients that
/// open connections and send nothing must not keep the kubelet's probes out.
const MAX_CONNECTIONS: usize = 32;
/// A connection carries one request, and this is its time limit.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for the header of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest response that [`probe`] reads, in bytes: the state of a node with some thousand ports.
const MAX_PROBE_RESPONSE: u64 = 4 * 1024 * 1024;

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Returns the routes that every program has.
pub fn router(readiness: Readiness, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(Admin {
            readiness,
            registry,
        })
}

async fn readyz(State(admin): State<Admin>) -> (StatusCode, String) {
    let pending = admin.readiness.pending();
    if pending.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready\n{}\n", pending.join("\n")),
        )
    }
}

async fn metrics_text(State(admin): State<Admin>) -> impl IntoResponse {
    match metrics::encode(&admin.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves until the token is cancelled; requests in progress still get their response. A connection
/// carries one request, so that idle clients do not fill the table.
pub async fn serve<L>(mut listener: L, router: Router, token: CancellationToken)
where
    L: Listener<Addr: 'static>,
{
    let mut slots = Connections::default();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // accept() of this trait never fails: it logs, waits and tries again
        let (stream, address) = tokio::select! {
            () = token.cancelled() => break,
            accepted = listener.accept() => accepted,
            // frees ended tasks while no client connects
            Some(_ended) = connections.join_next() => continue,
        };
        let (slot, _evicted) = slots.enter(peer_of(&address), MAX_CONNECTIONS);
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // an error means that the client closed the connection, which needs no action
            let limited = tokio::time::timeout(CONNECTION_LIMIT, connection);
            tokio::select! {
                () = slot.evicted.cancelled() => {}
                _ended = limited => {}
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

/// The peer of an accepted connection, whatever the listener's kind of address.
fn peer_of(address: &dyn Any) -> Peer {
    let address = address.downcast_ref::<SocketAddr>();
    address.map_or_else(Peer::default, |address| address.ip().into())
}

/// The response to a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Body; bytes that are not UTF-8 are replaced.
    pub body: String,
}

/// Why a probe got no response.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Connecting, writing or reading failed.
    #[error("cannot send a request over {path}; does the program run?")]
    Io {
        /// The socket.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No response within the limit.
    #[error("no response over {path} within {limit:?}")]
    TimedOut {
        /// The socket.
        path: String,
        /// The limit.
        limit: Duration,
    },
    /// The response is not HTTP.
    #[error("the response over {path} is not HTTP")]
    NotHttp {
        /// The socket.
        path: String,
    },
}

/// Sends a request to an admin server on a unix socket, for example for `/readyz`. An exec probe
/// runs it.
pub async fn probe(socket: &Path, route: &str, limit: Duration) -> Result<Response, ProbeError> {
    let path = socket.display().to_string();
    match tokio::time::timeout(limit, exchange(socket, route)).await {
        Err(_elapsed) => Err(ProbeError::TimedOut { path, limit }),
        Ok(Err(source)) => Err(ProbeError::Io { path, source }),
        Ok(Ok(bytes)) => parse_response(&bytes).ok_or(ProbeError::NotHttp { path }),
    }
}

async fn exchange(socket: &Path, route: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let request = format!("GET {route} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream
        .take(MAX_PROBE_RESPONSE)
        .read_to_end(&mut response)
        .await?;
    Ok(response)
}

fn parse_response(bytes: &[u8]) -> Option<Response> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    let status = words
        .next()?
        .starts_with("HTTP/1.")
        .then(|| words.next())??;
    Some(Response {
        status: status.parse().ok()?,
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests;
