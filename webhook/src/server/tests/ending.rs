//! Shutdown: clients are told first, then accepted requests get their responses.

use super::*;

#[tokio::test]
async fn a_shutdown_is_announced_and_accepted_requests_get_responses() {
    let server = start(PATIENT);
    let mut old = server.http1().await;
    assert!(!ask(&mut old, NOT_ASKED).await.contains("connection: close"));
    let mut idle = server.http1().await;
    ask(&mut idle, NOT_ASKED).await;
    let mut halfway = server.http1().await;
    ask(&mut halfway, NOT_ASKED).await;

    server.ending.closing.cancel();
    assert!(
        ask(&mut old, NOT_ASKED).await.contains("connection: close"),
        "the client should use another replica"
    );
    closed(&mut old).await;
    let mut new = server.http1().await;
    let header = ask(&mut new, NOT_ASKED).await;
    assert!(
        header.starts_with("http/1.1 200") && header.contains("connection: close"),
        "{header}"
    );

    let (begin, end) = NOT_ASKED.split_at(20);
    let begin = format!("{}{begin}", head(NOT_ASKED.len()));
    halfway.write_all(begin.as_bytes()).await.unwrap();
    // the server reads in order of arrival: after this response it has read the header of `halfway`
    let mut probe = server.http1().await;
    ask(&mut probe, NOT_ASKED).await;

    server.ending.draining.cancel();
    closed(&mut idle).await;
    halfway.write_all(end.as_bytes()).await.unwrap();
    assert!(response(&mut halfway).await.starts_with("http/1.1 200"));
    let address = server.address;
    server.end().await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "the listener is closed"
    );
}

#[tokio::test]
async fn an_http2_client_gets_a_goaway() {
    let server = start(PATIENT);
    let stream = server.tls(&rustls::version::TLS13, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    assert!(sender.send_request(review(NOT_ASKED)).await.is_ok());
    server.ending.closing.cancel();
    // GOAWAY ends the connection without an error
    tokio::time::timeout(LIMIT, driver)
        .await
        .expect("a GOAWAY")
        .unwrap()
        .unwrap();
    server.ending.draining.cancel();
    server.end().await;
}

#[tokio::test]
async fn connections_that_outlast_the_drain_limit_are_dropped() {
    let server = start(Limits {
        drain: SHORT,
        ..PATIENT
    });
    let mut stuck = server.http1().await;
    stuck.write_all(head(100).as_bytes()).await.unwrap();
    let _silent = server.tcp().await;
    server.ending.closing.cancel();
    server.ending.draining.cancel();
    server.end().await;
}
