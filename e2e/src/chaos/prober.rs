//! The user outside the cluster: keeps one connection per pod open, and makes new ones all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::record::{Outlived, Record, count};
use super::view::{Seen, View};
use crate::{Cluster, visit};

/// Between two messages on an open connection.
const BEAT: Duration = Duration::from_millis(200);
/// Longest wait for an answer on an open connection. TCP retransmits lost packets sooner.
const SILENCE: Duration = Duration::from_secs(10);
/// How long one new connection may take to be made, and its answer to come.
const CALL: Duration = Duration::from_secs(1);
/// How long a Ready pod may fail to answer: the reported state is slightly old.
const GRACE: Duration = Duration::from_secs(1);
/// Between two calls of one caller. The machine is shared with the cluster.
const PACE: Duration = Duration::from_millis(8);
const STACK: usize = 128 * 1024;

/// Probes until it is stopped.
pub(super) struct Prober {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Clone)]
struct Shared {
    view: View,
    record: Arc<Record>,
    stop: Arc<AtomicBool>,
}

impl Prober {
    pub(super) fn start(cluster: &Cluster, view: &View, record: &Arc<Record>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Shared {
            view: view.clone(),
            record: Arc::clone(record),
            stop: Arc::clone(&stop),
        };
        let thread = visit::at(cluster, "client", move || shepherd(&shared))?;
        let thread = Some(thread);
        Ok(Self { stop, thread })
    }

    pub(super) fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(JoinHandle::join);
        joined.map_or(Ok(()), |joined| {
            joined.map_err(|_| anyhow!("the prober panicked"))?
        })
    }
}

impl Drop for Prober {
    /// After a failed run the cluster ends: connections that break then are no violations.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Starts the callers, and a talker for each pod that has none.
fn shepherd(shared: &Shared) {
    let callers: Vec<_> = [(0, "TCP"), (1, "TCP"), (0, "UDP")]
        .into_iter()
        .filter_map(|(half, protocol)| {
            let shared = shared.clone();
            spawn(move || call_all(&shared, half, protocol)).ok()
        })
        .collect();
    let talking: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let lock = |set: &Arc<Mutex<BTreeSet<String>>>, uid: &str, add: bool| {
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        if add {
            set.insert(uid.to_owned())
        } else {
            set.remove(uid)
        }
    };
    while !shared.is_over() {
        for (uid, seen) in shared.view.all() {
            if !seen.is_up()
                || shared.record.may_be_unreachable(&seen.node, &uid)
                || !lock(&talking, &uid, true)
            {
                continue;
            }
            let (shared, set) = (shared.clone(), Arc::clone(&talking));
            let started = spawn(move || {
                talk_with(&shared, &seen);
                lock(&set, &seen.uid, false);
            });
            if started.is_err() {
                lock(&talking, &uid, false);
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    for caller in callers {
        let _ = caller.join();
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().stack_size(STACK).spawn(body)
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Compares an answer with the pod it should come from. No fault excuses a wrong pod.
    fn judge(&self, seen: &Seen, endpoint: SocketAddr, answer: &str) {
        let expected = format!("{} {}", seen.name, seen.uid);
        if !answer.starts_with(&expected) {
            let published = self.view.get(&seen.uid).map(|now| now.entries);
            self.record.violation(format!(
                "wrong pod: {endpoint} of {expected} on {} answered {answer:?}; it publishes {published:?} now",
                seen.node
            ));
        }
    }
}

/// One connection, for as long as its pod lives.
fn talk_with(shared: &Shared, seen: &Seen) {
    let disturbances = || shared.record.disturbances(&seen.node, &seen.uid);
    let mut outlived = Outlived::new(disturbances());
    let Some(endpoint) = shared.view.endpoint(seen, "TCP") else {
        return;
    };
    let Ok(mut talk) = Talk::open(endpoint, SILENCE) else {
        // the callers report connections that cannot be made
        thread::sleep(BEAT);
        return;
    };
    count(&shared.record.streams);
    let begun = Instant::now();
    let mut number = 0_u64;
    while !shared.is_over() {
        number += 1;
        let text = number.to_string();
        let sent = disturbances();
        match talk.say(&text) {
            Ok(answer) => {
                shared.judge(seen, endpoint, &answer);
                count(&shared.record.messages);
                outlived.answered(sent);
            }
            Err(error) => {
                let excused =
                    shared.record.is_doomed(&seen.uid) || outlived.may_end(disturbances());
                if excused {
                    count(&shared.record.excused_breaks);
                } else if !shared.is_over() {
                    shared.record.violation(format!(
                        "broken connection: {endpoint} of {} ({}, {}) after {:.1} s and {number} messages: {error}",
                        seen.name, seen.uid, seen.node, begun.elapsed().as_secs_f64()
                    ));
                }
                return;
            }
        }
        thread::sleep(BEAT);
    }
}

/// New connections to every pod that should answer, one after the other.
fn call_all(shared: &Shared, half: usize, protocol: &'static str) {
    let halves = if protocol == "TCP" { 2 } else { 1 };
    let mut failing: BTreeMap<String, (Instant, u32)> = BTreeMap::new();
    while !shared.is_over() {
        let all = shared.view.all().into_values().filter(Seen::is_up);
        let mine: Vec<_> = all
            .filter(|seen| seen.uid.bytes().map(usize::from).sum::<usize>() % halves == half)
            .collect();
        failing.retain(|uid, _| mine.iter().any(|seen| seen.uid == *uid));
        for seen in mine {
            if shared.is_over() {
                return;
            }
            thread::sleep(PACE);
            if shared.record.is_doomed(&seen.uid) || !shared.view.still(&seen) {
                failing.remove(&seen.uid);
                continue;
            }
            let Some(endpoint) = shared.view.endpoint(&seen, protocol) else {
                continue;
            };
            let before = shared.record.disturbances(&seen.node, &seen.uid);
            let asked = if protocol == "TCP" {
                call(endpoint)
            } else {
                datagram(endpoint)
            };
            match asked {
                Ok(answer) => {
                    let record = &shared.record;
                    count(if protocol == "TCP" {
                        &record.calls
                    } else {
                        &record.datagrams
                    });
                    if !record.is_doomed(&seen.uid) {
                        shared.judge(&seen, endpoint, &answer);
                    }
                    failing.remove(&seen.uid);
                }
                Err(error) => {
                    let excused = shared.record.may_be_unreachable(&seen.node, &seen.uid)
                        || shared.record.disturbances(&seen.node, &seen.uid) != before
                        || !shared.view.still(&seen);
                    if excused {
                        failing.remove(&seen.uid);
                        continue;
                    }
                    let (since, times) = failing
                        .entry(seen.uid.clone())
                        .or_insert((Instant::now(), 0));
                    *times += 1;
                    if since.elapsed() > GRACE && *times > 2 {
                        shared.record.violation(format!(
                            "Ready but unreachable: {protocol} {endpoint} of {} ({}, {}) for {:.1} s: {error}",
                            seen.name, seen.uid, seen.node, since.elapsed().as_secs_f64()
                        ));
                        failing.remove(&seen.uid);
                    }
                }
            }
        }
        thread::sleep(PACE);
    }
}

/// A conversation in lines.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn open(endpoint: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&endpoint, CALL)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn say(&mut self, text: &str) -> io::Result<String> {
        self.0.get_mut().write_all(format!("{text}\n").as_bytes())?;
        let mut answer = String::new();
        if self.0.read_line(&mut answer)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let answer = answer.trim_end();
        if !answer.ends_with(&format!(" {text}")) {
            return Err(io::Error::other(format!(
                "sent {text:?}, received {answer:?}"
            )));
        }
        Ok(answer.to_owned())
    }
}

/// The answer over a new connection.
pub(super) fn call(endpoint: SocketAddr) -> io::Result<String> {
    Talk::open(endpoint, CALL)?.say("hello")
}

/// A datagram may be lost: asks three times within the time of a call.
fn datagram(endpoint: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(endpoint)?;
    socket.set_read_timeout(Some(CALL / 3))?;
    let mut answer = [0; 512];
    let mut outcome = Err(ErrorKind::TimedOut.into());
    for _ in 0..3 {
        match socket.send(b"hello").and_then(|_| socket.recv(&mut answer)) {
            Ok(length) => return Ok(String::from_utf8_lossy(&answer[..length]).trim().to_owned()),
            Err(error) => outcome = Err(error),
        }
    }
    outcome
}

/// Asks every port of these pods once from outside; the first that does not answer as it should.
pub(super) fn reach(cluster: &Cluster, view: &View, pods: Vec<Seen>) -> Result<Option<String>> {
    let view = view.clone();
    visit::run_at(cluster, "client", move || {
        for seen in pods {
            for (protocol, ask) in [
                ("TCP", call as fn(SocketAddr) -> io::Result<String>),
                ("UDP", datagram),
            ] {
                let Some(endpoint) = view.endpoint(&seen, protocol) else {
                    return Some(format!("{} has no {protocol} port", seen.name));
                };
                let expected = format!("{} {}", seen.name, seen.uid);
                match ask(endpoint) {
                    Ok(answer) if answer.starts_with(&expected) => {}
                    Ok(answer) => {
                        return Some(format!(
                            "{protocol} {endpoint} of {expected} answers {answer:?}"
                        ));
                    }
                    Err(error) => {
                        return Some(format!("{protocol} {endpoint} of {expected}: {error}"));
                    }
                }
            }
        }
        None
    })
    .context("ask every pod")
}
