//! TLS connections: accept, handshake, serve, drain. Every stage has a time limit.
//!
//! ```text
//! closing cancelled   new connections are still accepted; every HTTP/1 response closes its connection
//! draining cancelled  no new connections; idle ones are closed, requests get their responses
//! drain limit over    the remaining connections are dropped
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
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use portmapping_runtime::conns::{Activity, ConnectionSlot, Connections, Peer};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::metrics::Metrics;
use crate::unread::Unread;

/// Connections that wait in the kernel to be accepted; a full queue delays new clients by a
/// retransmission.
const BACKLOG: i32 = 1024;
/// Wait after a failed accept: its usual cause, no free descriptors, needs time to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes that one read from a socket may return, kept by each connection as long as it is open. rustls
/// reads 4 KiB at a time: without a buffer, a review of 1.1 MB costs 280 system calls, with it 140.
const READ_BUFFER_BYTES: usize = 8 * 1024;
/// Reviews in progress on one HTTP/2 connection; a client with more opens another connection. One
/// thread answers one after another: what waits only takes memory, two read buffers for each body.
const MAX_STREAMS: u32 = 8;
/// Bytes that one HTTP/2 request may send before they are read. The server sends a window update
/// for each half of it; at 32 KiB these updates cost more than decrypting the body.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same for a connection. It holds all requests, so that one that waits for memory does not
/// block those that have theirs.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Longest header of a request, in bytes; the API server's are below 1 KiB.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Bytes that one HTTP/1 connection may buffer; a header must fit.
const MAX_BUFFER_BYTES: usize = 16 * 1024;

/// How long a connection may stay open, by what it does.
#[derive(Clone, Copy, Debug)]
pub struct IdleTimeouts {
    /// From accept to the end of the first request's header, TLS handshake included.
    pub first: Duration,
    /// From one request to the next. Longer than the 90 s after which a Go client closes an idle
    /// connection: if the server closed first, a request could arrive after the close and fail.
    pub idle: Duration,
    /// From a request to its response; longer than the review's deadline.
    pub busy: Duration,
}

impl IdleTimeouts {
    /// When the connection must be closed, unless its activity changes before.
    fn deadline(self, activity: Activity) -> Instant {
        Instant::from_std(match activity {
            Activity::NoRequestYet(since) => since + self.first,
            Activity::Idle(since) => since + self.idle,
            Activity::Busy(since) => since + self.busy,
        })
    }
}

/// Limits of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For a connection.
    pub timeouts: IdleTimeouts,
    /// Connections at once.
    pub connections: usize,
    /// For the requests in progress when draining begins.
    pub drain: Duration,
}

/// The stages of a shutdown; see the module.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Cancelled when clients should use another replica.
    pub closing: CancellationToken,
    /// Cancelled when no further connection is accepted.
    pub draining: CancellationToken,
}

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is the address free, and one of this host?")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on an address. `[::]` means IPv4 and IPv6, or IPv4 only on a machine without IPv6.
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

/// TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1, with the resolver's current certificate.
#[must_use]
pub fn tls_config(resolver: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // API servers do not resume sessions, so storing them would only take memory
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// What every connection needs.
struct Shared {
    acceptor: TlsAcceptor,
    http: Http,
}

/// Serves HTTP on one connection after its TLS handshake.
#[derive(Clone, Debug)]
pub struct Http {
    /// Handles the requests.
    pub router: Router,
    /// Limits of the server.
    pub limits: Limits,
    /// The stages of its shutdown.
    pub ending: Ending,
    /// Its counters.
    pub metrics: Metrics,
}

/// Accepts and serves connections until `ending.draining` is cancelled, then drains.
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
    let mut connections = Connections::default();
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        metrics.set_connections(tasks.len());
        let accepted = tokio::select! {
            () = draining.cancelled() => break,
            accepted = listener.accept() => accepted,
            // removes finished tasks and updates the gauge while no connection arrives
            Some(_finished) = tasks.join_next() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                let peer = Peer::from(address.ip());
                let (slot, evicted) = connections.enter(peer, limits.connections);
                if evicted {
                    metrics.record_closed("evicted");
                }
                tasks.spawn(connection(Arc::clone(&shared), stream, slot, peer));
            }
            Err(error) => {
                tracing::warn!(%error, pause = ?ACCEPT_PAUSE, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(limits.drain, all).await.is_err() {
        tracing::warn!(
            connections = tasks.len(),
            limit = ?limits.drain,
            "draining took too long; dropping the remaining connections"
        );
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, slot: Arc<ConnectionSlot>, peer: Peer) {
    let Shared { acceptor, http } = shared.as_ref();
    // a response is two small writes: with Nagle's algorithm, the second waits for an acknowledgement
    if let Err(error) = SockRef::from(&stream).set_tcp_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY; responses may be slower");
    }
    let stream = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
    let handshake = timeout(http.limits.handshake, acceptor.accept(stream));
    let stream = tokio::select! {
        () = slot.evicted.cancelled() => return,
        done = handshake => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                http.metrics.record_handshake_failure("tls");
                tracing::debug!(%error, "TLS handshake failed");
                return;
            }
            Err(_elapsed) => return http.metrics.record_handshake_failure("timeout"),
        },
    };
    let version = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    http.serve(stream, version, slot, peer).await;
}

impl Http {
    /// Serves HTTP over a byte stream until the client closes it, a limit is exceeded, the
    /// connection is evicted or the server shuts down.
    pub async fn serve<S>(&self, stream: S, version: Version, slot: Arc<ConnectionSlot>, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let unread = Unread::new(STREAM_WINDOW);
        let received = unread.clone();
        let count = move |bytes: &[u8]| received.received(bytes.len());
        let stream = TokioIo::new(InspectReader::new(stream, count));
        let service = service_fn(|mut request| {
            request.extensions_mut().insert(unread.begin());
            self.respond(&slot, peer, request)
        });
        if version == Version::HTTP_2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .initial_stream_window_size(STREAM_WINDOW)
                .max_header_list_size(MAX_HEADER_BYTES)
                .serve_connection(stream, service);
            // HTTP/2 can refuse new requests (GOAWAY) without losing one that is on its way
            self.drive(&slot, Box::pin(connection), &self.ending.closing)
                .await;
        } else {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                // no shorter than the slot's own timeouts, which `drive` enforces
                .header_read_timeout(self.limits.timeouts.idle)
                .max_buf_size(MAX_BUFFER_BYTES)
                .serve_connection(stream, service);
            self.drive(&slot, Box::pin(connection), &self.ending.draining)
                .await;
        }
    }

    /// Runs a connection until it ends, times out or is evicted. Shuts it down gracefully when
    /// `finish` is cancelled.
    async fn drive<C>(
        &self,
        slot: &ConnectionSlot,
        // boxed, so that the task of an HTTP/1 connection is not sized for HTTP/2
        mut connection: Pin<Box<C>>,
        finish: &CancellationToken,
    ) where
        C: GracefulConnection,
    {
        let mut finishing = false;
        loop {
            let timeouts = self.limits.timeouts;
            let deadline = || timeouts.deadline(slot.activity());
            // the activity may change at any time, and nothing tells this loop
            let next_check = Instant::now() + timeouts.busy;
            tokio::select! {
                // an error here has its cause in the client: it disconnected or broke the protocol
                _ended = connection.as_mut() => return,
                () = finish.cancelled(), if !finishing => {
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = slot.evicted.cancelled() => return,
                () = sleep_until(deadline().min(next_check)) => {
                    if deadline() <= Instant::now() {
                        return self.metrics.record_closed("silent");
                    }
                }
            }
        }
    }

    fn respond(
        &self,
        slot: &ConnectionSlot,
        peer: Peer,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<axum::body::Body>, Infallible>> + use<> {
        let in_progress = slot.begin_request();
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
            // a client that does not take its response has a request in progress
            let unchanged = move |frame| {
                let _ = &in_progress;
                frame
            };
            Ok(response.map(|body| axum::body::Body::new(body.map_frame(unchanged))))
        }
    }
}

#[cfg(test)]
mod tests;
