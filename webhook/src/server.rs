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
use std::pin::Pin;
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
use portmapping_runtime::conns::{Connections, Peer, Place, Silence};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use self::ahead::Ahead;
use crate::metrics::Metrics;

mod ahead;

/// Connections that the kernel keeps while the program is busy accepting others.
const BACKLOG: i32 = 1024;
/// Wait after a failed accept: the usual cause, no free descriptors, does not pass at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Reviews that one HTTP/2 connection may have open; a client with more opens another connection.
const MAX_STREAMS: u32 = 16;
/// Bytes that one HTTP/2 request may send ahead of their being read. A long body waits for a word
/// of ours each half of it: with 32 KiB those words cost more than the body's decryption.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of a connection: enough for all requests, so that one that waits for memory does not
/// hold up those that have it.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
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
    // API servers keep no sessions to resume: nobody asks for what would be kept for them
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// What every connection needs.
struct Shared {
    acceptor: TlsAcceptor,
    http: Http,
}

/// What every connection needs once it has shaken hands.
#[derive(Clone, Debug)]
pub struct Http {
    /// Who answers.
    pub router: Router,
    /// Limits of the server.
    pub limits: Limits,
    /// The stages of its end.
    pub ending: Ending,
    /// Its counters.
    pub metrics: Metrics,
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
        http: Http {
            router,
            limits,
            ending,
            metrics: metrics.clone(),
        },
    });
    let connections = Connections::new(limits.connections);
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        metrics.set_connections(connections.count());
        let accepted = tokio::select! {
            () = draining.cancelled() => break,
            accepted = listener.accept() => accepted,
            // keeps the table of tasks and the gauge true while nobody comes
            Some(_ended) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                let peer = Peer::from(address.ip());
                match connections.enter(peer) {
                    Some((place, evicted)) => {
                        if evicted {
                            metrics.closed("evicted");
                        }
                        tasks.spawn(connection(Arc::clone(&shared), stream, place, peer));
                    }
                    None => metrics.closed("refused"),
                }
            }
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

async fn connection(shared: Arc<Shared>, stream: TcpStream, place: Place, peer: Peer) {
    let Shared { acceptor, http } = shared.as_ref();
    // an answer is two small writes: without this the second waits for the first's acknowledgement
    if let Err(error) = SockRef::from(&stream).set_tcp_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let handshake = timeout(http.limits.handshake, acceptor.accept(Ahead::new(stream)));
    let stream = tokio::select! {
        () = place.evicted() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                http.metrics.handshake_failed("tls");
                tracing::debug!(%error, "TLS handshake failed");
                return;
            }
            Err(_elapsed) => return http.metrics.handshake_failed("timeout"),
        },
    };
    let version = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    http.serve(stream, version, place, peer).await;
}

impl Http {
    /// Speaks HTTP over anything that carries bytes, until an end of the connection that the
    /// client, a limit, an eviction or the server's own end brings about.
    pub async fn serve<S>(&self, stream: S, version: Version, place: Place, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(stream);
        let place = Arc::new(place);
        let service = service_fn(|request| self.answer(&place, peer, request));
        if version == Version::HTTP_2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .initial_stream_window_size(STREAM_WINDOW)
                .max_header_list_size(MAX_HEADER_BYTES)
                .serve_connection(stream, service);
            // HTTP/2 has a way of saying "no new requests" that no request can cross
            self.drive(&place, Box::pin(connection), &self.ending.closing)
                .await;
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                // the place's silence limits are tighter
                .header_read_timeout(self.limits.silence.idle)
                .max_buf_size(MAX_BUFFER_BYTES)
                .serve_connection(stream, service);
            self.drive(&place, Box::pin(connection), &self.ending.draining)
                .await;
        }
    }

    /// Runs a connection until it ends, is silent for too long, must make place, or shall `finish`.
    async fn drive<C>(
        &self,
        place: &Place,
        // a connection in a box of its own, lest every one has room for both protocols
        mut connection: Pin<Box<C>>,
        finish: &CancellationToken,
    ) where
        C: GracefulConnection,
    {
        let mut finishing = false;
        let silence = self.limits.silence;
        loop {
            let silent_at = Instant::from_std(place.silent_at(silence));
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
                    if place.silent_at(silence) <= std::time::Instant::now() {
                        return self.metrics.closed("silent");
                    }
                }
            }
        }
    }

    fn answer(
        &self,
        place: &Arc<Place>,
        peer: Peer,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<axum::body::Body>, Infallible>> + use<> {
        let busy = place.busy();
        let http1 = request.version() < Version::HTTP_2;
        let closing = self.ending.closing.clone();
        request.extensions_mut().insert(peer);
        let response = self.router.clone().call(request);
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
}

#[cfg(test)]
mod tests;
