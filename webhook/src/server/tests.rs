//! A real server on a loopback socket, with a certificate from the library that issues them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portmapping_certs::rotation::{Decision, Flaw};
use portmapping_certs::{Lifetimes, Material, Names, Resolver, issue};
use portmapping_runtime::metrics as text;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Ending, IdleTimeouts, Limits, listen, serve, tls_config};
use crate::metrics::Metrics;
use crate::routes;

mod ending;
mod hostile;
mod limits;

/// Nothing in these tests takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_mins(1);
const SHORT: Duration = Duration::from_millis(30);
/// Limits that no test reaches by accident.
const PATIENT: Limits = Limits {
    handshake: LONG,
    timeouts: IdleTimeouts {
        first: LONG,
        idle: LONG,
        busy: LONG,
    },
    connections: 100,
    drain: LONG,
};
const NOT_ASKED: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","resource":{"group":"","version":"v1","resource":"pods"},"operation":"CREATE","object":{}}}"#;

struct Server {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    ending: Ending,
    metrics: Metrics,
    task: JoinHandle<()>,
}

fn start(limits: Limits) -> Server {
    start_with(limits, true)
}

fn start_with(limits: Limits, with_certificate: bool) -> Server {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let names = Names::of_service("webhook", "portmapping-system");
    let lifetimes = Lifetimes {
        ca: LONG * 60,
        leaf: LONG * 60,
    };
    let (roll, now) = (Decision::RollCa(Flaw::Missing), OffsetDateTime::now_utc());
    let made = issue::renew(&Material::default(), &roll, &names, lifetimes, now);
    let made = made.unwrap().unwrap();
    let resolver = Resolver::default();
    if with_certificate {
        resolver.install(&made.leaf, &made.leaf_key).unwrap();
    }
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(made.ca_bundle.as_bytes()).unwrap())
        .unwrap();

    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (ending, metrics) = (Ending::default(), Metrics::default());
    let reviews = routes::Limits {
        body_bytes: 500_000,
        deadline: Duration::from_secs(5),
        max_ports: 64,
    };
    let task = tokio::spawn(serve(
        listener,
        tls_config(Arc::new(resolver)),
        routes::router(reviews, metrics.clone()),
        limits,
        ending.clone(),
        metrics.clone(),
    ));
    Server {
        address,
        roots: Arc::new(roots),
        ending,
        metrics,
        task,
    }
}

impl Server {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(
        &self,
        version: &'static SupportedProtocolVersion,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake_hands(self.tcp().await, version, alpn).await
    }

    /// A TLS 1.3 handshake over the caller's stream.
    async fn handshake(
        &self,
        stream: TcpStream,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.shake_hands(stream, &rustls::version::TLS13, alpn)
            .await
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        version: &'static SupportedProtocolVersion,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("webhook.portmapping-system.svc").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    async fn http1(&self) -> TlsStream<TcpStream> {
        self.tls(&rustls::version::TLS13, b"http/1.1")
            .await
            .unwrap()
    }

    fn metrics(&self) -> String {
        let mut registry = text::registry();
        self.metrics.register(&mut registry);
        text::encode(&registry).unwrap()
    }

    async fn end(self) {
        tokio::time::timeout(LIMIT, self.task)
            .await
            .expect("the server ends")
            .unwrap();
    }
}

fn review(body: &'static str) -> Request<Body> {
    let request = Request::post("https://webhook.portmapping-system.svc/mutate");
    request.body(Body::from(body)).unwrap()
}

fn head(length: usize) -> String {
    format!("POST /mutate HTTP/1.1\r\nHost: webhook\r\nContent-Length: {length}\r\n\r\n")
}

/// Sends a whole review. Reads the whole response and returns its header.
async fn ask(stream: &mut TlsStream<TcpStream>, body: &str) -> String {
    let request = format!("{}{body}", head(body.len()));
    stream.write_all(request.as_bytes()).await.unwrap();
    response(stream).await
}

async fn response(stream: &mut TlsStream<TcpStream>) -> String {
    let reading = async {
        let mut read = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let length = stream.read(&mut piece).await.unwrap();
            assert_ne!(length, 0, "no response: {}", String::from_utf8_lossy(&read));
            read.extend_from_slice(&piece[..length]);
            let text = String::from_utf8_lossy(&read).to_lowercase();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .split("content-length: ")
                .nth(1)
                .unwrap()
                .lines()
                .next()
                .unwrap();
            if body.len() >= length.parse().unwrap() {
                return head.to_owned();
            }
        }
    };
    tokio::time::timeout(LIMIT, reading)
        .await
        .expect("a response in time")
}

/// Waits until the server closes the connection.
async fn closed(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut rest = Vec::new();
    // an error (reset, no close_notify) is a close as well
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
        .await
        .expect("closed");
}

#[tokio::test]
async fn serves_both_tls_versions_and_both_http_versions() {
    let server = start(PATIENT);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let stream = server.tls(version, b"h2").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        let driver = tokio::spawn(connection);
        for _again in 0..3 {
            let response = sender.send_request(review(NOT_ASKED)).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(body.starts_with(br#"{"apiVersion":"admission.k8s.io/v1""#));
        }
        drop(sender);
        driver.await.unwrap().unwrap();

        let mut stream = server.tls(version, b"http/1.1").await.unwrap();
        for _again in 0..3 {
            assert!(
                ask(&mut stream, NOT_ASKED)
                    .await
                    .starts_with("http/1.1 200")
            );
        }
    }
}

#[tokio::test]
async fn without_a_certificate_the_handshake_fails_and_is_counted() {
    let server = start_with(PATIENT, false);
    assert!(server.tls(&rustls::version::TLS13, b"h2").await.is_err());
    let mut plain = server.tcp().await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    closed(&mut plain).await;
    let text = server.metrics();
    assert!(
        text.contains(r#"handshake_failures_total{reason="tls"} 2"#),
        "{text}"
    );
}
