//! Measures the server's cost of a review: `cargo bench -p webhook --bench review [-- FILE...]`. Files
//! are bodies of reviews; the default is two generated ones of 8 KB and 1.1 MB. Prints the CPU time of
//! the server's thread per review, TLS included, and that of parsing, judging and encoding alone.

// a benchmark that cannot run panics with the reason
#![allow(clippy::expect_used, clippy::panic)]

use std::fs;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portmapping_certs::rotation::{Decision, Flaw};
use portmapping_certs::{Lifetimes, Material, Names, Resolver, issue};
use portmapping_webhook::metrics::Metrics;
use portmapping_webhook::review::{self, Answer, Subject};
use portmapping_webhook::server::{self, Ending, IdleTimeouts, Limits};
use portmapping_webhook::{mutate, routes};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECTIONS: usize = 8;
const STREAMS: usize = 16;
const HOUR: Duration = Duration::from_hours(1);
const NAME: &str = "webhook.portmapping-system.svc";

fn body(annotations: usize) -> Vec<u8> {
    let env: Vec<_> = (0..40)
        .map(|it| json!({ "name": format!("SETTING_{it}"), "value": "x".repeat(40) }))
        .collect();
    let ports: Vec<_> = [8080, 9040, 53, 9100]
        .map(|port| json!({ "containerPort": port, "name": format!("p{port}"), "protocol": "TCP" }))
        .into();
    let mut marks = serde_json::Map::new();
    for it in 0..annotations {
        marks.insert(format!("example.com/{it}"), "y".repeat(1_000).into());
    }
    marks.insert("tkestack.io/portmapping".to_owned(), "".into());
    let review = json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800003",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "games",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": {
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": {
                    "generateName": "game-",
                    "annotations": marks,
                    "managedFields": vec![json!({ "fieldsV1": { "f:metadata": { "f:labels": {} } } }); 40],
                },
                "spec": { "containers": [{ "name": "a", "env": env, "ports": ports }] },
                "status": {},
            },
            "oldObject": null,
            "dryRun": false,
        },
    });
    review.to_string().into_bytes()
}

/// CPU time of the calling thread.
fn thread_time() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    let nanos = text.split(' ').next().expect("a number");
    Duration::from_nanos(nanos.parse().expect("a number"))
}

/// Parsing, judging and encoding.
fn alone(body: &[u8]) -> Duration {
    let rounds = (200_000_000 / (body.len() + 20_000)).min(20_000);
    let start = Instant::now();
    for _round in 0..rounds {
        let review = review::parse(black_box(body)).expect("a review");
        let Subject::Pod(pod) = &review.subject else {
            panic!("no pod")
        };
        let verdict = mutate::judge(pod, 64);
        black_box(review::encode(&review.uid, &Answer::Verdict(&verdict)).expect("a response"));
    }
    start.elapsed() / u32::try_from(rounds).expect("few")
}

/// A server in a thread of its own, which reports its CPU time on request.
struct Server {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
    ask: tokio::sync::mpsc::UnboundedSender<mpsc::Sender<Duration>>,
}

fn start() -> Server {
    let names = Names::of_service("webhook", "portmapping-system");
    let lifetimes = Lifetimes {
        ca: HOUR,
        leaf: HOUR,
    };
    let roll = Decision::RollCa(Flaw::Missing);
    let now = OffsetDateTime::now_utc();
    let made = issue::renew(&Material::default(), &roll, &names, lifetimes, now);
    let made = made.expect("certificates").expect("certificates");
    let resolver = Resolver::default();
    resolver
        .install(&made.leaf, &made.leaf_key)
        .expect("a pair");
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(made.ca_bundle.as_bytes()).expect("PEM");
    roots.add(authority).expect("an authority");

    let (reply, replies) = mpsc::channel();
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel::<mpsc::Sender<Duration>>();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = server::listen("127.0.0.1:0".parse().expect("an address"));
            let listener = listener.expect("a listener");
            reply
                .send(listener.local_addr().expect("an address"))
                .expect("the client waits");
            let metrics = Metrics::default();
            let reviews = routes::Limits {
                body_bytes: 3 << 20,
                deadline: HOUR,
                max_ports: 64,
            };
            let timeouts = IdleTimeouts {
                first: HOUR,
                idle: HOUR,
                busy: HOUR,
            };
            let limits = Limits {
                handshake: HOUR,
                timeouts,
                connections: 512,
                drain: HOUR,
            };
            tokio::spawn(server::serve(
                listener,
                server::tls_config(Arc::new(resolver)),
                routes::router(reviews, metrics.clone()),
                limits,
                Ending::default(),
                metrics,
            ));
            while let Some(back) = asked.recv().await {
                back.send(thread_time()).expect("the client waits");
            }
        });
    });
    Server {
        address: replies.recv().expect("an address"),
        roots: Arc::new(roots),
        ask,
    }
}

impl Server {
    fn time(&self) -> Duration {
        let (reply, replies) = mpsc::channel();
        self.ask.send(reply).expect("the server runs");
        replies.recv().expect("the server runs")
    }

    async fn sender(&self) -> hyper::client::conn::http2::SendRequest<Body> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.expect("a stream");
        stream.set_nodelay(true).expect("an option");
        let name = ServerName::try_from(NAME).expect("a name");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = TokioIo::new(stream.await.expect("a handshake"));
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .expect("HTTP/2");
        tokio::spawn(connection);
        sender
    }
}

async fn ask(sender: &mut hyper::client::conn::http2::SendRequest<Body>, body: &Bytes) {
    sender.ready().await.expect("a connection");
    let request = Request::post(format!("https://{NAME}/mutate?timeout=5s"))
        .header("content-type", "application/json")
        .body(Body::from(body.clone()))
        .expect("a request");
    let response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.expect("a response");
}

async fn over_tls(server: &Server, body: &[u8]) -> (Duration, f64, Duration) {
    let body = Bytes::copy_from_slice(body);
    let rounds = 400_000_000 / (body.len() + 20_000) / (CONNECTIONS * STREAMS);
    let mut first = server.sender().await;
    let mut serial = Vec::new();
    for _round in 0..200 {
        let start = Instant::now();
        ask(&mut first, &body).await;
        serial.push(start.elapsed());
    }
    serial.sort();
    let mut clients = Vec::new();
    for _connection in 0..CONNECTIONS {
        let mut sender = server.sender().await;
        ask(&mut sender, &body).await;
        clients.extend(vec![sender; STREAMS]);
    }
    let (before, start) = (server.time(), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for mut sender in clients {
        let body = body.clone();
        tasks.spawn(async move {
            for _round in 0..rounds {
                ask(&mut sender, &body).await;
            }
        });
    }
    tasks.join_all().await;
    let reviews = u32::try_from(rounds * CONNECTIONS * STREAMS).expect("few");
    let rate = f64::from(reviews) / start.elapsed().as_secs_f64();
    (
        server.time().saturating_sub(before) / reviews,
        rate,
        serial[198],
    )
}

fn main() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .expect("the first one");
    let mut bodies = vec![
        ("generated, small".to_owned(), body(0)),
        ("generated, large".to_owned(), body(1_100)),
    ];
    let files: Vec<_> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    if !files.is_empty() {
        bodies = files
            .into_iter()
            .map(|file| (file.clone(), fs::read(&file).expect("a file")))
            .collect();
    }
    let server = start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    for (name, body) in bodies {
        let alone = alone(&body);
        let (all, rate, p99) = runtime.block_on(over_tls(&server, &body));
        let bytes = body.len();
        println!(
            "{name}: {bytes} bytes: server {all:?} a review at {rate:.0}/s, of it {alone:?} for the decision; serial p99 {p99:?}"
        );
    }
}
