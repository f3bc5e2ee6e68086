//! The end of a server: told first, then what was accepted is answered.

use super::*;

#[tokio::test]
async fn an_end_is_announced_then_accepted_requests_are_answered() {
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
        "go elsewhere"
    );
    closed(&mut old).await;
    let mut new = server.http1().await;
    let told = ask(&mut new, NOT_ASKED).await;
    assert!(
        told.starts_with("http/1.1 200") && told.contains("connection: close"),
        "{told}"
    );

    let (begin, end) = NOT_ASKED.split_at(20);
    let begin = format!("{}{begin}", head(NOT_ASKED.len()));
    halfway.write_all(begin.as_bytes()).await.unwrap();
    // answered while `halfway` waits, so the server has seen its header by then
    let mut probe = server.http1().await;
    ask(&mut probe, NOT_ASKED).await;

    server.ending.draining.cancel();
    closed(&mut idle).await;
    halfway.write_all(end.as_bytes()).await.unwrap();
    assert!(answer(&mut halfway).await.starts_with("http/1.1 200"));
    let address = server.address;
    server.ended().await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn an_http2_connection_is_told_to_finish() {
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
        .expect("told")
        .unwrap()
        .unwrap();
    server.ending.draining.cancel();
    server.ended().await;
}

#[tokio::test]
async fn what_does_not_end_in_time_is_dropped() {
    let server = start(Limits {
        drain: SHORT,
        ..PATIENT
    });
    let mut stuck = server.http1().await;
    stuck.write_all(head(100).as_bytes()).await.unwrap();
    let _silent = server.tcp().await;
    server.ending.closing.cancel();
    server.ending.draining.cancel();
    server.ended().await;
}
