use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{ProbeError, parse_response, probe, router, serve};
use crate::metrics;
use crate::ready::Readiness;

const LIMIT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn responds_over_a_unix_socket_until_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let readiness = Readiness::default();
    let part = readiness.handle("watch");
    let mut registry = metrics::registry();
    let counter = prometheus_client::metrics::counter::Counter::<u64>::default();
    registry.register("tries", "Tries", counter.clone());
    counter.inc();
    let extra = Router::new().route("/state", get(|| async { "{}" }));
    let routes = router(readiness, Arc::new(registry)).merge(extra);
    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(
        UnixListener::bind(&socket).unwrap(),
        routes,
        token.clone(),
    ));

    let answer = probe(&socket, "/readyz", LIMIT).await.unwrap();
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "not ready\nwatch: starting\n")
    );
    part.ready();
    assert_eq!(probe(&socket, "/readyz", LIMIT).await.unwrap().status, 200);
    assert_eq!(
        probe(&socket, "/healthz", LIMIT).await.unwrap().body,
        "ok\n"
    );
    assert_eq!(probe(&socket, "/state", LIMIT).await.unwrap().body, "{}");
    assert_eq!(probe(&socket, "/nowhere", LIMIT).await.unwrap().status, 404);
    let text = probe(&socket, "/metrics", LIMIT).await.unwrap().body;
    assert!(text.contains("portmapping_tries_total 1"), "{text}");

    token.cancel();
    tokio::time::timeout(LIMIT, tasks.join_all())
        .await
        .expect("ends when cancelled");
    assert!(matches!(
        probe(&socket, "/healthz", LIMIT).await,
        Err(ProbeError::Io { .. })
    ));
}

#[tokio::test]
async fn a_probe_of_a_silent_socket_ends() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("silent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = probe(&socket, "/healthz", Duration::from_millis(20))
        .await
        .unwrap_err();
    assert!(matches!(error, ProbeError::TimedOut { .. }));
}

#[tokio::test]
async fn silent_clients_do_not_keep_a_probe_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = router(Readiness::default(), Arc::new(metrics::registry()));
    let token = CancellationToken::new();
    let server = tokio::spawn(serve(listener, routes, token.clone()));
    let mut silent = Vec::new();
    for _client in 0..500 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut probe = TcpStream::connect(address).await.unwrap();
    let mut answer = String::new();
    let asking = async {
        probe.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        probe.read_to_string(&mut answer).await
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    drop(silent);
    token.cancel();
    tokio::time::timeout(LIMIT, server).await.unwrap().unwrap();
}

#[test]
fn only_http_is_a_response() {
    assert_eq!(
        parse_response(b"HTTP/1.0 200 OK\r\na: b\r\n\r\nhi")
            .unwrap()
            .body,
        "hi"
    );
    for noise in [
        &b""[..],
        b"\r\n\r\n",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 abc x\r\n\r\n",
        b"\xff\xff",
    ] {
        assert_eq!(parse_response(noise), None);
    }
}
