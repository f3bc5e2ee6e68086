//! Two replicas renew leaf and authority repeatedly under load. Clients trust the registered
//! caBundle; some of them trust an earlier one, like an API server whose watch lags. No review and no
//! handshake fails, and no connection is closed.

// the helpers of a test may fail it
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portmapping_certs::bundle::{Registered, RegisteredWebhook, Registration, RegistrationError};
use portmapping_certs::secret::{Store, StoreError, Stored, Swap};
use portmapping_certs::{
    CertManager, Config, Lifetimes, Material, Metrics as CertMetrics, Names, Reports, Resolver,
};
use portmapping_runtime::Readiness;
use portmapping_runtime::metrics as registry;
use portmapping_webhook::metrics::Metrics;
use portmapping_webhook::routes;
use portmapping_webhook::server::{self, Ending, IdleTimeouts, Limits};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// The shortest lifetime in whole seconds with which ten rotations fit into a minute.
const LIFETIME: Duration = Duration::from_secs(5);
const ROTATIONS: u64 = 10;
const WITHIN: Duration = Duration::from_mins(1);
/// Age of the caBundle that lagging clients trust.
const LAG: Duration = Duration::from_millis(150);
const REVIEW: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","resource":{"group":"","version":"v1","resource":"pods"},"operation":"CREATE","object":{"metadata":{"annotations":{"tkestack.io/portmapping":""}},"spec":{"containers":[{"ports":[{"containerPort":80}]}]}}}}"#;

/// (version, content).
type Object<T> = Arc<Mutex<(u64, T)>>;

/// caBundles and the time of their registration.
type History = Arc<Mutex<VecDeque<(Instant, Vec<u8>)>>>;

/// Secret and registration with compare-and-swap, and the history of caBundles.
#[derive(Clone, Default)]
struct Cluster {
    secret: Object<Material>,
    bundle: Object<Vec<u8>>,
    history: History,
}

impl Cluster {
    /// The caBundle that was registered this long ago.
    fn bundle(&self, ago: Duration) -> Option<Vec<u8>> {
        let history = self.history.lock();
        let known = history.iter().rev().find(|(at, _)| at.elapsed() >= ago);
        known.map(|(_, bundle)| bundle.clone())
    }
}

impl Store for Cluster {
    async fn read(&self) -> Result<Option<Stored>, StoreError> {
        tokio::task::yield_now().await;
        let (version, material) = self.secret.lock().clone();
        Ok(Some(Stored {
            version: version.to_string(),
            material,
        }))
    }

    async fn create(&self) -> Result<Stored, StoreError> {
        unreachable!("the Secret exists from the start")
    }

    async fn replace(&self, seen: &str, material: &Material) -> Result<Swap, StoreError> {
        tokio::task::yield_now().await;
        let mut secret = self.secret.lock();
        if secret.0.to_string() != seen {
            return Ok(Swap::Conflict);
        }
        *secret = (secret.0 + 1, material.clone());
        Ok(Swap::Done)
    }
}

impl Registration for Cluster {
    async fn read(&self) -> Result<Option<Registered>, RegistrationError> {
        tokio::task::yield_now().await;
        let (version, ca_bundle) = self.bundle.lock().clone();
        let name = "ours".to_owned();
        Ok(Some(Registered {
            version: version.to_string(),
            webhooks: vec![RegisteredWebhook { name, ca_bundle }],
        }))
    }

    async fn write(&self, seen: &Registered, bundle: &str) -> Result<Swap, RegistrationError> {
        tokio::task::yield_now().await;
        let mut registered = self.bundle.lock();
        if registered.0.to_string() != seen.version {
            return Ok(Swap::Conflict);
        }
        *registered = (registered.0 + 1, bundle.into());
        let mut history = self.history.lock();
        history.push_back((Instant::now(), bundle.into()));
        Ok(Swap::Done)
    }

    // the periods are short enough
    async fn watch(&self, _changed: &Notify) {
        std::future::pending::<()>().await;
    }
}

struct Replica {
    address: SocketAddr,
    readiness: Readiness,
    metrics: CertMetrics,
    ending: Ending,
}

fn replica(cluster: &Cluster, tasks: &mut JoinSet<()>, token: &CancellationToken) -> Replica {
    let (readiness, metrics) = (Readiness::default(), CertMetrics::default());
    let reports = Reports {
        certificate: readiness.handle("certificate"),
        registration: readiness.handle("registration"),
        metrics: metrics.clone(),
    };
    let config = Config {
        names: Names::of_service("webhook", "portmapping-system"),
        lifetimes: Lifetimes {
            ca: LIFETIME,
            leaf: LIFETIME,
        },
        period: Duration::from_secs(15),
    };
    let resolver = Arc::new(Resolver::default());
    let (store, registration) = (cluster.clone(), cluster.clone());
    let manager = CertManager::new(config, store, registration, Arc::clone(&resolver), reports);
    let run = manager.run(token.clone());
    tasks.spawn(async {
        run.await;
    });

    let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let reviews = routes::Limits {
        body_bytes: 100_000,
        deadline: Duration::from_secs(4),
        max_ports: 64,
    };
    let timeouts = IdleTimeouts {
        first: WITHIN,
        idle: WITHIN * 3,
        busy: WITHIN,
    };
    let limits = Limits {
        handshake: Duration::from_secs(10),
        timeouts,
        connections: 100,
        drain: Duration::from_secs(5),
    };
    let (ending, counters) = (Ending::default(), Metrics::default());
    tasks.spawn(server::serve(
        listener,
        server::tls_config(resolver),
        routes::router(reviews, counters.clone()),
        limits,
        ending.clone(),
        counters,
    ));
    Replica {
        address,
        readiness,
        metrics,
        ending,
    }
}

async fn connect(address: SocketAddr, bundle: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle) {
        roots.add(authority.unwrap()).unwrap();
    }
    // a new configuration each time, so that no TLS session is resumed
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("webhook.portmapping-system.svc").unwrap();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

async fn review(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    let length = REVIEW.len();
    let request = format!(
        "POST /mutate HTTP/1.1\r\nHost: webhook\r\nContent-Length: {length}\r\n\r\n{REVIEW}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    while !response.ends_with(b"}}") {
        if stream.read_buf(&mut response).await? == 0 {
            return Err(std::io::Error::other("the server closed the connection"));
        }
    }
    let text = String::from_utf8_lossy(&response);
    assert!(text.contains(r#""uid":"u-1","allowed":true"#), "{text}");
    Ok(())
}

#[derive(Clone, Default)]
struct Tally {
    reviews: Arc<AtomicU64>,
    handshakes: Arc<AtomicU64>,
}

impl Tally {
    /// Opens one connection after another, each with the caBundle that was registered `ago`.
    async fn reconnect(self, cluster: Cluster, addresses: [SocketAddr; 2], ago: Duration) {
        for round in 0.. {
            let address = addresses[round % 2];
            let bundle = cluster.bundle(ago).expect("a bundle is registered");
            let mut stream = connect(address, &bundle).await.expect("a handshake");
            review(&mut stream).await.expect("a response");
            self.handshakes.fetch_add(1, Ordering::Relaxed);
            self.reviews.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Uses one connection from start to end.
    async fn stay(self, cluster: Cluster, address: SocketAddr) {
        let bundle = cluster.bundle(Duration::ZERO).unwrap();
        let mut stream = connect(address, &bundle).await.expect("a handshake");
        loop {
            review(&mut stream).await.expect("a response");
            self.reviews.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn count(metrics: &CertMetrics, line: &str) -> u64 {
    let mut names = registry::registry();
    metrics.register(&mut names);
    let text = registry::encode(&names).unwrap();
    let found = text.lines().find_map(|it| it.strip_prefix(line));
    found.map_or(0, |value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn ten_rotations_in_a_minute_fail_no_client() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = Cluster::default();
    let (token, mut servers) = (CancellationToken::new(), JoinSet::new());
    let replicas = [0, 1].map(|_| replica(&cluster, &mut servers, &token));
    let start = Instant::now();
    while !replicas.iter().all(|it| it.readiness.pending().is_empty())
        || cluster.bundle(LAG).is_none()
    {
        assert!(start.elapsed() < WITHIN, "the replicas do not become ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let tally = Tally::default();
    let mut clients = JoinSet::new();
    let addresses = [replicas[0].address, replicas[1].address];
    for ago in [Duration::ZERO, Duration::ZERO, LAG, LAG] {
        clients.spawn(tally.clone().reconnect(cluster.clone(), addresses, ago));
    }
    for address in addresses {
        clients.spawn(tally.clone().stay(cluster.clone(), address));
    }
    let issued = |kind: &str| {
        let line = format!("portmapping_certificate_issued_total{{certificate=\"{kind}\"}} ");
        let counts = replicas.iter().map(|it| count(&it.metrics, &line));
        counts.sum::<u64>()
    };
    let start = Instant::now();
    while issued("ca") <= ROTATIONS || issued("leaf") <= ROTATIONS {
        assert!(start.elapsed() < WITHIN, "too few rotations");
        tokio::select! {
            Some(failed) = clients.join_next() => failed.expect("no client fails"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        assert!(replicas.iter().all(|it| it.readiness.pending().is_empty()));
    }
    println!(
        "{} authorities, {} leaves, {} reviews, {} handshakes in {:?} without a failure",
        issued("ca"),
        issued("leaf"),
        tally.reviews.load(Ordering::Relaxed),
        tally.handshakes.load(Ordering::Relaxed),
        start.elapsed()
    );
    clients.shutdown().await;
    token.cancel();
    for replica in &replicas {
        replica.ending.closing.cancel();
        replica.ending.draining.cancel();
    }
    servers.join_all().await;
}
