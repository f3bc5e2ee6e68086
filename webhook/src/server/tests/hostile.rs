//! Clients that want to keep others out: one normal client, at another address or at the same one,
//! gets its answer all the same.

use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpSocket;

use super::*;

/// The flag's default.
const CONNECTIONS: usize = 512;
const CROWD: usize = 10_000;
/// Generous: it says that an answer comes, a benchmark says how fast.
const ANSWER: Duration = Duration::from_secs(5);

const CROWDED: Limits = Limits {
    connections: CONNECTIONS,
    ..PATIENT
};

/// A second loopback address: the API server, seen beside an attacker at the first.
async fn from_elsewhere(server: &Server) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    server.handshake(stream, b"http/1.1").await.unwrap()
}

/// A whole life of a normal client: connect, handshake, review, answer.
async fn served(what: &str, client: impl Future<Output = TlsStream<TcpStream>>) {
    let start = Instant::now();
    let asking = async {
        let mut stream = client.await;
        ask(&mut stream, NOT_ASKED).await
    };
    let answer = tokio::time::timeout(ANSWER, asking)
        .await
        .expect("an answer");
    assert!(answer.starts_with("http/1.1 200"), "{what}: {answer}");
    println!("{what}: answered after {:?}", start.elapsed());
}

#[tokio::test]
async fn ten_thousand_silent_connections_keep_nobody_out() {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = start(CROWDED);
    let mut known = from_elsewhere(&server).await;
    ask(&mut known, NOT_ASKED).await;
    let mut crowd = Vec::with_capacity(CROWD);
    while crowd.len() < CROWD {
        let hundred = (0..100).map(|_| TcpStream::connect(server.address));
        let hundred = futures::future::try_join_all(hundred).await;
        crowd.extend(hundred.expect("as many files as the crowd, and a few more"));
    }
    served("beside 10,000, another address", from_elsewhere(&server)).await;
    served("beside 10,000, the same address", server.http1()).await;
    let again = ask(&mut known, NOT_ASKED).await;
    assert!(again.starts_with("http/1.1 200"), "it was never evicted");
    let text = server.metrics();
    assert!(text.contains(r#"closed_total{reason="evicted"}"#), "{text}");
}

#[tokio::test]
async fn requests_that_never_end_keep_nobody_out() {
    let server = start(Limits {
        connections: 32,
        ..PATIENT
    });
    let mut known = from_elsewhere(&server).await;
    ask(&mut known, NOT_ASKED).await;
    // each is in the middle of a request, of which a byte comes now and then
    let drip = async |mut stream: TlsStream<TcpStream>| {
        let begin = format!("{}{{", head(90_000));
        while stream.write_all(begin.as_bytes()).await.is_ok() {
            tokio::time::sleep(SHORT).await;
        }
    };
    let mut slow = tokio::task::JoinSet::new();
    for _client in 0..64 {
        // the newest of them are refused: all of their own address are busy
        if let Ok(stream) = server.tls(&rustls::version::TLS13, b"http/1.1").await {
            slow.spawn(drip(stream));
        }
    }
    served("beside slow requests", from_elsewhere(&server)).await;
    assert!(ask(&mut known, NOT_ASKED).await.starts_with("http/1.1 200"));
    slow.shutdown().await;
}

#[tokio::test]
async fn half_headers_and_half_handshakes_keep_nobody_out() {
    let server = start(Limits {
        connections: 32,
        ..PATIENT
    });
    let mut half = Vec::new();
    for _client in 0..64 {
        let mut hello = server.tcp().await;
        // a TLS record that announces more than ever comes
        hello.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
        half.push(hello);
    }
    let mut slow = Vec::new();
    for _client in 0..40 {
        let mut stream = server.http1().await;
        let begin = b"POST /mutate HTTP/1.1\r\nHost: web";
        stream.write_all(begin).await.unwrap();
        slow.push(stream);
    }
    served("beside half headers", from_elsewhere(&server)).await;
    served("beside half headers, same address", server.http1()).await;
}

#[tokio::test]
async fn a_header_without_end_is_refused() {
    let server = start(PATIENT);
    let mut stream = server.http1().await;
    let begin = b"POST /mutate HTTP/1.1\r\nHost: webhook\r\nX-Long: ";
    stream.write_all(begin).await.unwrap();
    // the server stops reading and closes long before this ends
    for _piece in 0..1_000 {
        if stream.write_all(&[b'x'; 1_000]).await.is_err() {
            break;
        }
    }
    closed(&mut stream).await;
}

/// Many bodies that are longer than a window, on one connection: each must get what it waits for.
#[tokio::test]
async fn long_bodies_on_one_http2_connection_do_not_block_each_other() {
    let server = start(PATIENT);
    let stream = server.tls(&rustls::version::TLS13, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    // with the first answer the client has heard how many requests it may have open
    sender.send_request(review(NOT_ASKED)).await.unwrap();
    let long: &'static str = Box::leak(format!("{NOT_ASKED}{}", " ".repeat(400_000)).into());
    let mut asking = tokio::task::JoinSet::new();
    for _body in 0..60 {
        let mut sender = sender.clone();
        asking.spawn(async move {
            sender.ready().await.unwrap();
            sender.send_request(review(long)).await.unwrap().status()
        });
    }
    let answers = tokio::time::timeout(LIMIT, asking.join_all()).await;
    let answers = answers.expect("all answers");
    assert!(answers.iter().all(|status| *status == StatusCode::OK));
    drop(sender);
    driver.await.unwrap().unwrap();
}
