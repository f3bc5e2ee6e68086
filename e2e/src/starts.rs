//! Pods that announce their start, and are called back at once through their host ports from outside
//! the cluster.
//!
//! ```text
//! pod (first words) --its name--> collector --"who are you?"--> nodeIP:hostPort --> pod
//!                                    ^ where: the pod's annotation, as a watch has shown it
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError::Disconnected;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::api::{Api, WatchEvent};
use crate::cluster::Cluster;
use crate::wait::Patience;

const ANNOTATION: &str = "tkestack.io/portmapping";
/// How long a started pod may wait for its annotation. The pod itself waits a minute.
const PUBLISHED_SOON: Duration = Duration::from_secs(50);
/// How long the one call back may take.
const CALL: Duration = Duration::from_secs(3);
/// One wait for a call; the limit is checked between two of them.
const SHORT: Duration = Duration::from_secs(1);

/// The host to which pods connect. The client has no route to pods, so it could not answer them.
const ROUTER: &str = "control-plane";

/// A started pod, and the result of the call back.
#[derive(Clone, Debug)]
pub struct Call {
    /// The pod's name.
    pub pod: String,
    /// When its announcement arrived.
    pub begun: SystemTime,
    /// Whether its annotation was known by then. If not, the call waited for it.
    pub known: bool,
    /// Its first host port.
    pub host_port: u16,
    /// The answer at the first and only try, or the error.
    pub answer: Result<String, String>,
    /// When the answer was complete.
    pub answered: SystemTime,
}

impl Call {
    /// Whether the pod itself answered.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.answer.as_ref() == Ok(&self.pod)
    }
}

/// Where mapped pods answer, by name.
#[derive(Debug, Default)]
struct Endpoints {
    endpoints: Mutex<BTreeMap<String, SocketAddr>>,
    more: Condvar,
}

/// Listens for announcements until it is dropped.
#[derive(Debug)]
pub struct Collector {
    /// Where pods send their announcement.
    pub address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    stop: Arc<AtomicBool>,
}

impl Collector {
    /// Listens on the control plane, watches the pods of a namespace, and calls from the client.
    pub fn start(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let [address, _] = cluster.addresses(ROUTER)?;
        let network = network_of(cluster, ROUTER)?;
        let outside = Arc::new(network_of(cluster, "client")?);
        let nodes = node_addresses(cluster)?;
        let known = Arc::new(Endpoints::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, calls) = mpsc::channel();
        let (ready, bound) = mpsc::channel();
        let (shared, until) = (Arc::clone(&known), Arc::clone(&stop));
        thread::spawn(move || {
            let listener = setns(network, CloneFlags::CLONE_NEWNET)
                .context("enter the network of the control plane")
                .and_then(|()| {
                    TcpListener::bind(format!("{address}:0")).context("listen on the control plane")
                })
                .and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok((listener.local_addr()?, listener))
                });
            match listener {
                Ok((address, listener)) => {
                    let _ = ready.send(Ok(address));
                    listen(&listener, &outside, &shared, &sender, &until);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
        let address = bound.recv().context("the listening thread ended")??;
        let (api, namespace) = (Api::new(cluster.kubeconfig())?, namespace.to_owned());
        let until = Arc::clone(&stop);
        thread::spawn(move || watch(&api, &namespace, &nodes, &known, &until));
        Ok(Self {
            address,
            calls,
            stop,
        })
    }

    /// The next calls, as many as asked for.
    pub fn take(&self, count: usize, limit: Duration) -> Result<Vec<Call>> {
        let mut patience = Patience::of(limit);
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            match self.calls.recv_timeout(SHORT) {
                Ok(call) => taken.push(call),
                Err(error) if error == Disconnected || patience.left().is_zero() => {
                    let (seconds, taken) = (limit.as_secs(), taken.len());
                    return Err(error).with_context(|| {
                        format!("{taken} of {count} pods began within {seconds} s")
                    });
                }
                Err(_) => {}
            }
        }
        Ok(taken)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn listen(
    listener: &TcpListener,
    outside: &Arc<File>,
    known: &Arc<Endpoints>,
    calls: &mpsc::Sender<Call>,
    stop: &AtomicBool,
) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            // no connection yet: an announcement waits a millisecond at most
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let begun = SystemTime::now();
        let (outside, known, calls) = (Arc::clone(outside), Arc::clone(known), calls.clone());
        thread::spawn(move || {
            if let Err(error) = answer(&stream, begun, &outside, &known, &calls) {
                eprintln!("an announcement failed: {error:#}");
            }
        });
    }
}

fn answer(
    mut stream: &TcpStream,
    begun: SystemTime,
    outside: &File,
    known: &Endpoints,
    calls: &mpsc::Sender<Call>,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CALL))?;
    let mut name = String::new();
    BufReader::new(stream).take(256).read_line(&mut name)?;
    let pod = name.trim().to_owned();
    let (endpoint, was_known) = known.endpoint(&pod);
    // only this thread moves; the open connection stays in its network
    setns(outside, CloneFlags::CLONE_NEWNET).context("enter the client's network")?;
    let answer = match endpoint {
        Some(endpoint) => call(endpoint).map_err(|error| format!("{endpoint}: {error}")),
        None => Err("no annotation was published".to_owned()),
    };
    let answered = SystemTime::now();
    // the pod may go on; one that did not wait does not read this
    let _ = stream.write_all(b"\n");
    let _ = calls.send(Call {
        pod,
        begun,
        known: was_known,
        host_port: endpoint.map_or(0, |endpoint| endpoint.port()),
        answer,
        answered,
    });
    Ok(())
}

impl Endpoints {
    /// Where a pod answers, and whether that was known at once.
    fn endpoint(&self, pod: &str) -> (Option<SocketAddr>, bool) {
        let endpoints = self
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = endpoints.get(pod) {
            return (Some(*endpoint), true);
        }
        let waited = self
            .more
            .wait_timeout_while(endpoints, PUBLISHED_SOON, |all| !all.contains_key(pod));
        let (endpoints, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (endpoints.get(pod).copied(), false)
    }
}

/// One try: a lost packet and a late rule are failures.
fn call(endpoint: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&endpoint, CALL)?;
    stream.set_read_timeout(Some(CALL))?;
    stream.write_all(b"who are you?\n")?;
    let mut answer = [0; 256];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Updates `endpoints` until `stop` is set.
fn watch(
    api: &Api,
    namespace: &str,
    nodes: &BTreeMap<String, String>,
    known: &Endpoints,
    stop: &AtomicBool,
) {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let is_over = || stop.load(Ordering::Relaxed);
    api.follow(&path, is_over, |change| {
        let pods = match change {
            WatchEvent::All(pods) => pods,
            WatchEvent::Applied(pod) => vec![pod],
            WatchEvent::Deleted(_) => return,
        };
        let found = pods.iter().filter_map(|pod| mapped(pod, nodes));
        let mut endpoints = known
            .endpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        endpoints.extend(found);
        known.more.notify_all();
    });
}

/// Where a pod's annotation says that its first port answers.
fn mapped(pod: &Value, nodes: &BTreeMap<String, String>) -> Option<(String, SocketAddr)> {
    let value = pod["metadata"]["annotations"][ANNOTATION].as_str()?;
    let entries: Value = serde_json::from_str(value).ok()?;
    let host_port = u16::try_from(entries.get(0)?["hostPort"].as_u64()?).ok()?;
    let node = nodes.get(pod["spec"]["nodeName"].as_str()?)?;
    let endpoint = SocketAddr::new(node.parse().ok()?, host_port);
    Some((pod["metadata"]["name"].as_str()?.to_owned(), endpoint))
}

fn network_of(cluster: &Cluster, host: &str) -> Result<File> {
    let path = format!("/proc/{}/ns/net", cluster.pid(host)?);
    File::open(&path).with_context(|| format!("open {path}"))
}

/// Each node's first address.
fn node_addresses(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let nodes = cluster.nodes()?;
    let pairs = nodes.into_iter().map(|node| {
        let [address, _] = cluster.addresses(&node)?;
        Ok((node, address))
    });
    pairs.collect()
}
