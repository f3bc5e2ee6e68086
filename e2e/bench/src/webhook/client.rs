//! The load: reviews over TLS, in a closed loop, in an open loop, or one after another.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, yield_now};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest wait for one answer; a server that needs longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reviews under way at once: an API server has at most 200 writes by default, and portmapping refuses more
/// than 256 of one client.
const MOST_AT_ONCE: usize = 200;

/// The HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/1.1 with keep-alive: one review at a time.
    One,
    /// HTTP/2: several reviews at once.
    Two,
}

/// A server, and what is sent to it.
#[derive(Clone)]
pub(super) struct Target {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    body: Bytes,
}

/// The result of a load.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    /// The time of each answer.
    pub(super) latencies: Vec<Duration>,
    /// The time from the first review to the last answer.
    pub(super) took: Duration,
}

impl Load {
    /// Returns the time of each answer in milliseconds.
    pub(super) fn millis(&self) -> Vec<f64> {
        self.latencies
            .iter()
            .map(|time| time.as_secs_f64() * 1e3)
            .collect()
    }

    /// Returns the number of answers per second.
    pub(super) fn rate(&self) -> f64 {
        let answers = u32::try_from(self.latencies.len()).unwrap_or(u32::MAX);
        f64::from(answers) / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// One connection.
#[derive(Debug)]
enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Target {
    /// Creates a target. `authority` is the DER certificate of the CA that must have signed the
    /// certificate of the server.
    pub(super) fn new(address: SocketAddr, authority: CertificateDer<'static>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(authority).context("trust the benchmark's CA")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            address,
            tls: Arc::new(config),
            body: Bytes::new(),
        })
    }

    /// Returns the same server with another review.
    pub(super) fn sending(&self, body: &Bytes) -> Self {
        Self {
            body: body.clone(),
            ..self.clone()
        }
    }

    async fn connect(&self, version: Version) -> Result<Sender> {
        let mut config = (*self.tls).clone();
        config.alpn_protocols = vec![match version {
            Version::One => b"http/1.1".to_vec(),
            Version::Two => b"h2".to_vec(),
        }];
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await?;
        let io = TokioIo::new(tls);
        Ok(match version {
            Version::One => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Sender::One(sender)
            }
            Version::Two => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Sender::Two(sender)
            }
        })
    }

    /// Sends one review and checks the answer.
    async fn review(&self, sender: &mut Sender) -> Result<Bytes> {
        let path = match sender {
            Sender::One(_) => "/mutate".to_owned(),
            Sender::Two(_) => format!("https://{}/mutate", self.address),
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .header(HOST, self.address.to_string())
            .body(Full::new(self.body.clone()))?;
        let answer = async {
            let response = match sender {
                Sender::One(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
                Sender::Two(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await?
                }
            };
            ensure!(
                response.status().is_success(),
                "answered {}",
                response.status()
            );
            Ok(response.into_body().collect().await?.to_bytes())
        };
        timeout(PATIENCE, answer)
            .await
            .context("no answer in time")?
    }

    /// Connects and sends a first review: with its answer, a client of HTTP/2 knows how many more it may send
    /// at once.
    async fn warmed(&self, version: Version) -> Result<Sender> {
        let mut sender = self.connect(version).await?;
        self.review(&mut sender).await?;
        Ok(sender)
    }

    /// Sends one review on a new connection.
    pub(super) async fn once(&self, version: Version) -> Result<Bytes> {
        let mut sender = timeout(PATIENCE, self.connect(version)).await??;
        self.review(&mut sender).await
    }

    /// Sends as many reviews as possible in the time: each of `streams` per connection sends the
    /// next review when the last is answered.
    pub(super) async fn flood(
        &self,
        version: Version,
        connections: usize,
        streams: usize,
        time: Duration,
    ) -> Result<Load> {
        let mut senders = Vec::new();
        for _ in 0..connections {
            let sender = self.warmed(version).await?;
            match sender {
                Sender::One(sender) => senders.push(Sender::One(sender)),
                Sender::Two(sender) => {
                    senders.extend((0..streams).map(|_| Sender::Two(sender.clone())));
                }
            }
        }
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        for mut sender in senders {
            let target = self.clone();
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                while begun.elapsed() < time {
                    let sent = Instant::now();
                    target.review(&mut sender).await?;
                    latencies.push(sent.elapsed());
                }
                anyhow::Ok(latencies)
            });
        }
        let mut load = Load::default();
        while let Some(ended) = tasks.join_next().await {
            load.latencies.extend(ended??);
        }
        load.took = begun.elapsed();
        Ok(load)
    }

    /// Sends `rate` reviews per second on schedule, even if earlier ones are not answered. The time
    /// of each counts from the moment when it was due, so that a stall of the server counts for
    /// every review that it delays.
    pub(super) async fn schedule(
        &self,
        version: Version,
        connections: usize,
        rate: u32,
        time: Duration,
    ) -> Result<Load> {
        let mut idle = VecDeque::new();
        for _ in 0..connections {
            idle.push_back(self.warmed(version).await?);
        }
        let gap = Duration::from_secs(1) / rate;
        let mut tasks: JoinSet<Result<(Duration, Option<Sender>)>> = JoinSet::new();
        let mut load = Load::default();
        let begun = Instant::now();
        let mut due = begun;
        while due - begun < time {
            // busy wait on this thread's own core: a timer of the runtime has a resolution of a
            // millisecond
            while Instant::now() < due {
                yield_now().await;
                while let Some(ended) = tasks.try_join_next() {
                    let (latency, sender) = ended??;
                    load.latencies.push(latency);
                    idle.extend(sender);
                }
            }
            let free = tasks.len() < MOST_AT_ONCE;
            let Some(sender) = free.then(|| idle.pop_front()).flatten() else {
                // all HTTP/1.1 connections are busy, or the server has enough: the review waits, and the
                // wait is part of its time
                yield_now().await;
                if let Some(ended) = tasks.try_join_next() {
                    let (latency, sender) = ended??;
                    load.latencies.push(latency);
                    idle.extend(sender);
                }
                continue;
            };
            let mut mine = match sender {
                Sender::Two(shared) => {
                    idle.push_back(Sender::Two(shared.clone()));
                    Sender::Two(shared)
                }
                own @ Sender::One(_) => own,
            };
            let (target, was_due) = (self.clone(), due);
            tasks.spawn(async move {
                target.review(&mut mine).await?;
                let back = matches!(mine, Sender::One(_)).then_some(mine);
                Ok((was_due.elapsed(), back))
            });
            due += gap;
        }
        while let Some(ended) = tasks.join_next().await {
            load.latencies.push(ended??.0);
        }
        load.took = begun.elapsed();
        Ok(load)
    }
}
