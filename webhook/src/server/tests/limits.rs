//! Limits of one client: handshake time, silence, body size, connections.

use super::*;

#[tokio::test]
async fn a_client_without_a_handshake_is_disconnected() {
    let server = start(Limits {
        handshake: SHORT,
        ..PATIENT
    });
    let mut silent = server.tcp().await;
    closed(&mut silent).await;
    let text = server.metrics();
    assert!(
        text.contains(r#"handshake_failures_total{reason="timeout"} 1"#),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_without_a_whole_header_is_disconnected() {
    let timeouts = IdleTimeouts {
        first: SHORT * 10,
        ..PATIENT.timeouts
    };
    let server = start(Limits {
        timeouts,
        ..PATIENT
    });
    let mut nothing = server.http1().await;
    let mut half = server.http1().await;
    half.write_all(b"POST /mutate HTTP/1.1\r\nHost:")
        .await
        .unwrap();
    let mut http2 = server.tls(&rustls::version::TLS13, b"h2").await.unwrap();
    tokio::join!(closed(&mut nothing), closed(&mut half), closed(&mut http2));
    let text = server.metrics();
    assert!(
        text.contains(r#"connections_closed_total{reason="silent"} 3"#),
        "{text}"
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_timeout() {
    let timeouts = IdleTimeouts {
        idle: SHORT * 10,
        ..PATIENT.timeouts
    };
    let server = start(Limits {
        timeouts,
        ..PATIENT
    });
    let mut stream = server.http1().await;
    assert!(
        ask(&mut stream, NOT_ASKED)
            .await
            .starts_with("http/1.1 200")
    );
    closed(&mut stream).await;
}

#[tokio::test]
async fn an_oversized_body_is_refused_before_it_is_sent() {
    let server = start(PATIENT);
    let mut stream = server.http1().await;
    stream.write_all(head(1 << 30).as_bytes()).await.unwrap();
    assert!(response(&mut stream).await.starts_with("http/1.1 413"));
    closed(&mut stream).await;
}

#[tokio::test]
async fn a_full_table_evicts_connections_without_a_request() {
    let server = start(Limits {
        connections: 2,
        ..PATIENT
    });
    let (mut first, mut second) = (server.tcp().await, server.tcp().await);
    let mut third = server.http1().await;
    assert!(ask(&mut third, NOT_ASKED).await.starts_with("http/1.1 200"));
    let _fourth = server.tcp().await;
    closed(&mut first).await;
    closed(&mut second).await;
    assert!(
        ask(&mut third, NOT_ASKED).await.starts_with("http/1.1 200"),
        "it sent a request, so it stays"
    );
}

#[tokio::test]
async fn a_client_that_does_not_take_its_response_is_disconnected() {
    let server = start(Limits {
        timeouts: IdleTimeouts {
            busy: SHORT * 10,
            ..PATIENT.timeouts
        },
        ..PATIENT
    });
    let stream = server.tls(&rustls::version::TLS13, b"h2").await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(10);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    // its response is longer than what a connection gets at once
    let keys = (0..100).map(|n| format!(r#","host-port.tkestack.io/{n}":"""#));
    let annotations = format!(
        r#"{{"tkestack.io/portmapping":""{}}}"#,
        keys.collect::<String>()
    );
    let pod =
        format!(r#"{{"metadata":{{"annotations":{annotations}}},"spec":{{"containers":[]}}}}"#);
    let body = NOT_ASKED.replace("{}}}", &format!("{pod}}}}}"));
    let request = Request::post("https://webhook.portmapping-system.svc/mutate");
    let request = request.body(Body::from(body)).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    // later requests give it no more time
    tokio::spawn(async move {
        loop {
            let other = Request::get("https://webhook.portmapping-system.svc/x");
            let other = other.body(Body::empty()).unwrap();
            sender.ready().await.unwrap();
            sender.send_request(other).await.unwrap();
            tokio::time::sleep(SHORT).await;
        }
    });
    let ended = tokio::time::timeout(LIMIT, connection).await;
    drop(ended.expect("closed"));
    let text = server.metrics();
    assert!(text.contains(r#"closed_total{reason="silent"}"#), "{text}");
}
