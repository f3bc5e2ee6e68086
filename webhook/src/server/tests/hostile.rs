//! Clients that try to keep others out. A normal client, at another address or at the same one, gets
//! its response all the same.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use super::*;

/// The flag's default.
const CONNECTIONS: usize = 512;
const CROWD: usize = 10_000;
/// The API server, in all tests.
const API_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const CROWDED: Limits = Limits {
    connections: CONNECTIONS,
    ..PATIENT
};

/// A TLS record that announces more bytes than ever arrive.
const HALF_HANDSHAKE: &[u8] = b"\x16\x03\x01\x02\x00\x01";
const HALF_HEADER: &str = "POST /mutate HTTP/1.1\r\nHost: web";

/// Connects from a loopback address of the caller's choice.
async fn connect_from(from: Ipv4Addr, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(server).await
}

/// A TLS connection from a loopback address of the caller's choice.
async fn from(address: Ipv4Addr, server: &Server) -> TlsStream<TcpStream> {
    let stream = connect_from(address, server.address).await.unwrap();
    server.handshake(stream, b"http/1.1").await.unwrap()
}

/// A normal client from connect to response.
async fn served(what: &str, client: impl Future<Output = TlsStream<TcpStream>>) {
    let start = Instant::now();
    let asking = async {
        let mut stream = client.await;
        ask(&mut stream, NOT_ASKED).await
    };
    let response = tokio::time::timeout(LIMIT, asking)
        .await
        .expect("a response");
    assert!(response.starts_with("http/1.1 200"), "{what}: {response}");
    println!("{what}: response after {:?}", start.elapsed());
}

/// The crowd needs a descriptor for each end of each connection.
fn raise_descriptor_limit() {
    let (_soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

#[tokio::test]
async fn ten_thousand_silent_connections_keep_no_client_out() {
    raise_descriptor_limit();
    let server = start(CROWDED);
    let mut known = from(API_SERVER, &server).await;
    ask(&mut known, NOT_ASKED).await;
    let mut crowd = Vec::with_capacity(CROWD);
    while crowd.len() < CROWD {
        let hundred = (0..100).map(|_| TcpStream::connect(server.address));
        let hundred = futures::future::try_join_all(hundred).await;
        crowd.extend(hundred.expect("descriptors for the crowd and a few more"));
    }
    served("10,000 others, another address", from(API_SERVER, &server)).await;
    served("10,000 others, the same address", server.http1()).await;
    let again = ask(&mut known, NOT_ASKED).await;
    assert!(again.starts_with("http/1.1 200"), "it was never evicted");
    let text = server.metrics();
    assert!(text.contains(r#"closed_total{reason="evicted"}"#), "{text}");
}

/// What one pod does with each connection that it opens.
#[derive(Clone, Copy)]
enum Attack {
    /// Never sends a byte.
    Silent,
    /// Sends half of a TLS record.
    HalfHandshake,
    /// Ends the handshake and sends half a header.
    HalfHeader,
    /// Sends a whole review and keeps the connection.
    Review,
}

const ATTACKS: [Attack; 4] = [
    Attack::Silent,
    Attack::HalfHandshake,
    Attack::HalfHeader,
    Attack::Review,
];

/// Opens connections from this address without end and holds the newest hundred.
async fn open_all_it_can(attack: Attack, from: Ipv4Addr, server: Arc<Server>) {
    const HELD: usize = 100;
    let (mut tcp, mut tls) = (VecDeque::new(), VecDeque::new());
    loop {
        // errors mean that the server closed a connection, which is what it is for
        let Ok(mut stream) = connect_from(from, server.address).await else {
            continue;
        };
        match attack {
            Attack::Silent => tcp.push_back(stream),
            Attack::HalfHandshake => {
                let _ = stream.write_all(HALF_HANDSHAKE).await;
                tcp.push_back(stream);
            }
            Attack::HalfHeader | Attack::Review => {
                let Ok(mut stream) = server.handshake(stream, b"http/1.1").await else {
                    continue;
                };
                let text = match attack {
                    Attack::Review => format!("{}{NOT_ASKED}", head(NOT_ASKED.len())),
                    _ => HALF_HEADER.to_owned(),
                };
                let _ = stream.write_all(text.as_bytes()).await;
                tls.push_back(stream);
            }
        }
        tcp.drain(..tcp.len().saturating_sub(HELD));
        tls.drain(..tls.len().saturating_sub(HELD));
    }
}

/// 20 pods that open all they can, from addresses that `pod` chooses, and an API server that needs
/// a new connection for each of its reviews.
async fn twenty_pods_do_not_keep_the_api_server_out(
    attacks: &[Attack],
    pod: impl Fn(u8) -> Ipv4Addr,
) {
    raise_descriptor_limit();
    let server = Arc::new(start(CROWDED));
    let mut pods = JoinSet::new();
    for number in 0..20 {
        let attack = attacks[usize::from(number) % attacks.len()];
        pods.spawn(open_all_it_can(attack, pod(number), Arc::clone(&server)));
    }
    let full = async {
        while !server
            .metrics()
            .contains(r#"closed_total{reason="evicted"}"#)
        {
            tokio::task::yield_now().await;
        }
    };
    let full = tokio::time::timeout(LIMIT, full).await;
    full.expect("the pods fill the table");
    for _review in 0..10 {
        served("20 pods", from(API_SERVER, &server)).await;
    }
    pods.shutdown().await;
}

#[tokio::test]
async fn pods_at_twenty_addresses_do_not_keep_the_api_server_out() {
    let address = |number| [127, 0, 1, number].into();
    twenty_pods_do_not_keep_the_api_server_out(&ATTACKS, address).await;
}

#[tokio::test]
async fn pods_at_the_api_servers_address_do_not_keep_it_out() {
    twenty_pods_do_not_keep_the_api_server_out(&ATTACKS, |_number| API_SERVER).await;
}

#[tokio::test]
async fn idle_connections_from_the_api_servers_address_do_not_keep_it_out() {
    twenty_pods_do_not_keep_the_api_server_out(&[Attack::Review], |_number| API_SERVER).await;
}

#[tokio::test]
async fn requests_that_never_end_keep_no_client_out() {
    let server = start(Limits {
        connections: 32,
        ..PATIENT
    });
    let mut known = from(API_SERVER, &server).await;
    ask(&mut known, NOT_ASKED).await;
    // each is in the middle of a request, of which a byte arrives now and then
    let drip = async |mut stream: TlsStream<TcpStream>| {
        let begin = format!("{}{{", head(90_000));
        while stream.write_all(begin.as_bytes()).await.is_ok() {
            tokio::time::sleep(SHORT).await;
        }
    };
    let mut slow = JoinSet::new();
    for _client in 0..64 {
        slow.spawn(drip(server.http1().await));
    }
    served("slow requests, another address", from(API_SERVER, &server)).await;
    assert!(ask(&mut known, NOT_ASKED).await.starts_with("http/1.1 200"));
    slow.shutdown().await;
}

#[tokio::test]
async fn half_headers_and_half_handshakes_keep_no_client_out() {
    let server = start(Limits {
        connections: 32,
        ..PATIENT
    });
    let mut half = Vec::new();
    for _client in 0..64 {
        let mut stream = server.tcp().await;
        stream.write_all(HALF_HANDSHAKE).await.unwrap();
        half.push(stream);
    }
    let mut slow = Vec::new();
    for _client in 0..40 {
        let mut stream = server.http1().await;
        stream.write_all(HALF_HEADER.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    served("half headers, another address", from(API_SERVER, &server)).await;
    served("half headers, the same address", server.http1()).await;
}

#[tokio::test]
async fn a_header_without_end_is_refused() {
    let server = start(PATIENT);
    let mut stream = server.http1().await;
    let begin = b"POST /mutate HTTP/1.1\r\nHost: webhook\r\nX-Long: ";
    stream.write_all(begin).await.unwrap();
    // the server stops reading and closes the connection long before this ends
    for _piece in 0..1_000 {
        if stream.write_all(&[b'x'; 1_000]).await.is_err() {
            break;
        }
    }
    closed(&mut stream).await;
}

/// Many bodies that are longer than a window, on one connection.
#[tokio::test]
async fn long_bodies_on_one_http2_connection_do_not_block_each_other() {
    let server = start(PATIENT);
    let stream = server.tls(&rustls::version::TLS13, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    // the first response tells the client how many requests it may have open
    sender.send_request(review(NOT_ASKED)).await.unwrap();
    let long: &'static str = Box::leak(format!("{NOT_ASKED}{}", " ".repeat(400_000)).into());
    let mut asking = JoinSet::new();
    for _body in 0..60 {
        let mut sender = sender.clone();
        asking.spawn(async move {
            sender.ready().await.unwrap();
            sender.send_request(review(long)).await.unwrap().status()
        });
    }
    let responses = tokio::time::timeout(LIMIT, asking.join_all()).await;
    let responses = responses.expect("all responses");
    assert!(responses.iter().all(|status| *status == StatusCode::OK));
    drop(sender);
    driver.await.unwrap().unwrap();
}

/// A frame of HTTP/2 on stream 1.
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = u8::from(kind != SETTINGS);
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
/// No frame has this type: it means nothing, and is ignored.
const UNKNOWN: u8 = 0x42;

/// The header of a long review; each field is spelled out.
fn long_review() -> Vec<u8> {
    let length = 400_000.to_string();
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "webhook"),
        (":path", "/mutate"),
        ("content-length", &length),
    ];
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let field = |(name, value)| [vec![0], text(name), text(value)].concat();
    fields.into_iter().flat_map(field).collect()
}

/// h2 keeps each piece of a body in the 8 KiB that arrived with it.
#[tokio::test]
async fn a_body_that_waits_keeps_little_memory() {
    let server = start(PATIENT);
    let mut first = server.http1().await;
    let expects = head(500_000).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    first.write_all(expects.as_bytes()).await.unwrap();
    // the server reads it, so it has all memory of this peer
    first.read_exact(&mut [0; 25]).await.unwrap();
    let mut stream = server.tls(&rustls::version::TLS13, b"h2").await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let (settings, header) = (frame(SETTINGS, 0, &[]), frame(HEADERS, 4, &long_review()));
    stream
        .write_all(&[settings, header].concat())
        .await
        .unwrap();
    // no more than the body's window
    for _piece in 0..500 {
        let piece = [frame(DATA, 0, &[b' '; 256]), frame(UNKNOWN, 0, &[0; 7_900])];
        stream.write_all(&piece.concat()).await.unwrap();
    }
    let outcome = async {
        while !server.metrics().contains(r#"outcome=""#) {
            tokio::time::sleep(SHORT).await;
        }
    };
    tokio::time::timeout(LIMIT, outcome).await.unwrap();
    let metrics = server.metrics();
    assert!(metrics.contains(r#"outcome="Crowded"} 1"#), "{metrics}");
}
