//! TLS connections: accept, handshake, serve, drain. Every stage has an end.
//!
//! ```text
//! closing cancelled   new connections are still accepted, every HTTP/1 answer ends its connection
//! draining cancelled  no new connections; idle ones end, requests get their answers
//! drain limit over    what is left is dropped
//! ```

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::conns::{Connections, Place, Silence};
use crate::metrics::Metrics;

/// Connections that the kernel keeps while the program is busy accepting others.
const BACKLOG: i32 = 1024;
/// Wait after a failed accept: the usual cause, no free descriptors, does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Reviews that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 64;
/// Bytes that one HTTP/2 connection may send ahead of their being read.
const WINDOW: u32 = 256 * 1024;
/// Longest header of a request, in bytes; the API server's are below 1 KiB.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Most that one HTTP/1 connection buffers, in bytes; a header must fit.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// Limits of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For a connection's silence.
    pub silence: Silence,
    /// Connections at once.
    pub connections: usize,
    /// For the answers that are due when draining begins.
    pub drain: Duration,
}

/// The stages of an end; see the module.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Clients should go elsewhere.
    pub closing: CancellationToken,
    /// Nobody else gets in.
    pub draining: CancellationToken,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on an address; `[::]` means both families, and IPv4 alone on a machine without IPv6.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listener = try_listen(address).or_else(|error| match address {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            try_listen((Ipv4Addr::UNSPECIFIED, v6.port()).into()).map_err(|_second| error)
        }
        _ => Err(error),
    });
    listener.map_err(|source| ListenError { address, source })
}

fn try_listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, the certificate that the resolver has at the moment.
#[must_use]
pub fn tls_config(resolver: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// What every connection needs.
struct Shared {
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    ending: Ending,
    metrics: Metrics,
}

/// Serves until `ending` says otherwise, then drains.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    limits: Limits,
    ending: Ending,
    metrics: Metrics,
) {
    let draining = ending.draining.clone();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let shared = Arc::new(Shared {
        acceptor,
        router,
        limits,
        ending,
        metrics,
    });
    let connections = Connections::new(limits.connections);
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        shared.metrics.set_connections(connections.count());
        let accepted = tokio::select! {
            () = draining.cancelled() => break,
            accepted = listener.accept() => accepted,
            // keeps the table of tasks and the gauge true while nobody comes
            Some(_ended) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, _peer)) => match connections.enter() {
                Some((place, evicted)) => {
                    if evicted {
                        shared.metrics.closed("evicted");
                    }
                    tasks.spawn(connection(Arc::clone(&shared), stream, place));
                }
                None => shared.metrics.closed("refused"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(limits.drain, all).await.is_err() {
        tracing::warn!(
            connections = connections.count(),
            "dropping what did not end in time"
        );
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, place: Place) {
    // an answer is two small writes: without this the second waits for the first's acknowledgement
    if let Err(error) = SockRef::from(&stream).set_tcp_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let place = Arc::new(place);
    let handshake = timeout(shared.limits.handshake, shared.acceptor.accept(stream));
    let stream = tokio::select! {
        () = place.evicted() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                shared.metrics.handshake_failed("tls");
                tracing::debug!(%error, "TLS handshake failed");
                return;
            }
            Err(_elapsed) => return shared.metrics.handshake_failed("timeout"),
        },
    };
    serve_http(&shared, stream, &place).await;
}

async fn serve_http(shared: &Shared, stream: TlsStream<TcpStream>, place: &Arc<Place>) {
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = TokioIo::new(stream);
    let service = service_fn(|request| answer(shared, place, request));
    if http2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_connection_window_size(WINDOW)
            .initial_stream_window_size(WINDOW)
            .max_header_list_size(MAX_HEADER_BYTES)
            .serve_connection(stream, service);
        // HTTP/2 has a way of saying "no new requests" that no request can cross
        drive(shared, place, connection, &shared.ending.closing).await;
    } else {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // the place's silence limits are tighter
            .header_read_timeout(shared.limits.silence.idle)
            .max_buf_size(MAX_BUFFER_BYTES)
            .serve_connection(stream, service);
        drive(shared, place, connection, &shared.ending.draining).await;
    }
}

/// Runs a connection until it ends, is silent for too long, must make place, or shall `finish`.
async fn drive<C>(shared: &Shared, place: &Place, connection: C, finish: &CancellationToken)
where
    C: GracefulConnection,
{
    let mut connection = pin!(connection);
    let mut finishing = false;
    loop {
        let silent_at = Instant::from_std(place.silent_at(shared.limits.silence));
        tokio::select! {
            // an error here is the client's: it left, or it does not speak HTTP
            _ended = connection.as_mut() => return,
            () = finish.cancelled(), if !finishing => {
                finishing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = place.evicted() => return,
            () = sleep_until(silent_at) => {
                // things may have changed since the alarm was set
                if place.silent_at(shared.limits.silence) <= std::time::Instant::now() {
                    return shared.metrics.closed("silent");
                }
            }
        }
    }
}

fn answer(
    shared: &Shared,
    place: &Arc<Place>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<axum::body::Body>, Infallible>> + use<> {
    let busy = place.busy();
    let http1 = request.version() < Version::HTTP_2;
    let closing = shared.ending.closing.clone();
    let response = shared.router.clone().call(request);
    async move {
        let Ok(mut response) = response.await;
        if http1 && closing.is_cancelled() {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        drop(busy);
        Ok(response)
    }
}

#[cfg(test)]
mod tests;
