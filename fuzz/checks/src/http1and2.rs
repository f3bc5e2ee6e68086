//! Sends bytes to the server's connection handler through an in-memory stream.

use std::net::IpAddr;
use std::time::Duration;

use http::Version;
use portmapping_runtime::conns::{Connections, Peer};
use portmapping_webhook::metrics::Metrics;
use portmapping_webhook::routes;
use portmapping_webhook::server::{Ending, Http, IdleTimeouts, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Far longer than a connection takes: the client sends all its bytes at once and closes.
const LIMIT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_mins(1);
/// The client's preface and empty settings, RFC 9113 section 3.4. The server rejects a connection
/// without them.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Checks the bytes of a connection inside TLS. The first byte selects HTTP/1.1 (0), HTTP/2 (1), or
/// HTTP/2 after a valid preface (2).
pub fn http(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let (version, begin): (_, &[u8]) = match kind % 3 {
        0 => (Version::HTTP_11, b""),
        1 => (Version::HTTP_2, b""),
        _ => (Version::HTTP_2, PREFACE),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let exchange = exchange(version, begin, rest);
        tokio::time::timeout(LIMIT, exchange)
            .await
            .expect("the handler of a closed connection ends");
    });
}

async fn exchange(version: Version, begin: &[u8], rest: &[u8]) {
    let metrics = Metrics::default();
    let reviews = routes::Limits {
        body_bytes: 64 * 1024,
        deadline: LONG,
        max_ports: 64,
    };
    let timeouts = IdleTimeouts {
        first: LONG,
        idle: LONG,
        busy: LONG,
    };
    let server = Http {
        router: routes::router(reviews, metrics.clone()),
        limits: Limits {
            handshake: LONG,
            timeouts,
            connections: 1,
            drain: LONG,
        },
        ending: Ending::default(),
        metrics,
    };
    let peer = Peer::from(IpAddr::from([10, 0, 0, 1]));
    let (slot, _evicted) = Connections::default().enter(peer, 1);
    let (client, stream) = tokio::io::duplex(64 * 1024);
    let (mut read, mut write) = tokio::io::split(client);
    let send = async {
        // the server may close the connection before it has read everything
        let _ = write.write_all(begin).await;
        let _ = write.write_all(rest).await;
        let _ = write.shutdown().await;
    };
    let receive = async {
        let mut answers = Vec::new();
        let _ = read.read_to_end(&mut answers).await;
        answers
    };
    let serve = server.serve(stream, version, slot, peer);
    let ((), (), answers) = tokio::join!(serve, send, receive);
    if version == Version::HTTP_11 && !answers.is_empty() {
        assert!(answers.starts_with(b"HTTP/1."), "the answer is not HTTP");
    }
}
