//! Records when the kernel of a node has the rules of a pod, from the kernel's notifications. `nft
//! monitor` reads the whole ruleset before it prints, so its output is tens of milliseconds late.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, setns};
use nix::unistd::Pid;
use portmapping_dataplane::netlink::{Message, NetlinkError, Options, Socket};

use super::priority;
use e2e::cluster::Cluster;

/// `NFT_MSG_NEWRULE` of `NFNL_SUBSYS_NFTABLES` (`linux/netfilter/nf_tables.h`).
const NEW_RULE: u16 = 0x0a06;
/// `NFNLGRP_NFTABLES`, the seventh group.
const GROUP: u32 = 1 << 6;
/// Bytes of notifications that may wait: a change of fifty pods has about ten thousand of them.
const BUFFER: usize = 16 * 1024 * 1024;
/// The text before the uid in the comment of a rule: `portmapping:UID`.
const OWNER: &[u8] = b"portmapping:";
/// How often the listener checks whether it must stop.
const POLL: Duration = Duration::from_millis(200);

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// Returns the family of an address as text.
    pub(super) fn of(address: &str) -> Self {
        if address.contains(':') {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// A rule that is in the kernel.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    /// When its notification arrived.
    pub(super) seen: SystemTime,
    pub(super) family: Family,
    /// The uid of its pod.
    pub(super) owner: String,
}

/// Records the rules of pods until it is dropped.
pub(super) struct Rules {
    heard: Arc<Mutex<Heard>>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Heard {
    rules: Vec<Rule>,
    error: Option<NetlinkError>,
}

impl Rules {
    /// Listens on every processor. While a processor is busy in the kernel, its listener does not
    /// run; the earliest time of all listeners counts.
    pub(super) fn watch(cluster: &Cluster, node: &str) -> Result<Self> {
        let path = format!("/proc/{}/ns/net", cluster.pid(node)?);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask for the processors")?;
        let allowed: Vec<usize> = (0..CpuSet::count())
            .filter(|processor| allowed.is_set(*processor).unwrap_or(false))
            .collect();
        for processor in allowed {
            let network = File::open(&path).with_context(|| format!("open {path}"))?;
            let (records, until) = (Arc::clone(&heard), Arc::clone(&stop));
            let (ready, opened) = mpsc::channel();
            thread::spawn(move || match open(network, processor) {
                Ok(socket) => {
                    let _ = ready.send(Ok(()));
                    listen(socket, &records, &until);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            });
            opened.recv().context("the listening thread ended")??;
        }
        Ok(Self { heard, stop })
    }

    /// Returns the rules so far, the earliest first; an error if a notification was lost.
    pub(super) fn seen(&self) -> Result<Vec<Rule>> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &heard.error {
            bail!("notifications of rules were lost: {error}");
        }
        let mut rules = heard.rules.clone();
        rules.sort_by_key(|rule| rule.seen);
        Ok(rules)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Moves this thread to a processor, and opens a socket in a network namespace.
fn open(network: File, processor: usize) -> Result<Socket> {
    setns(network, CloneFlags::CLONE_NEWNET).context("enter the node's network")?;
    let mut only = CpuSet::new();
    only.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("stay on a processor")?;
    priority::favour_this_thread()?;
    let options = Options {
        deadline: POLL,
        receive_buffer: BUFFER,
        groups: GROUP,
        ..Options::default()
    };
    Socket::open(options).context("listen to the packet filter")
}

fn listen(mut socket: Socket, heard: &Mutex<Heard>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let mut rules = Vec::new();
        let outcome = socket.hear(|message| rules.extend(rule(message)));
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.rules.extend(rules);
        match outcome {
            Ok(()) | Err(NetlinkError::Deadline(_)) => {}
            Err(error) => heard.error = Some(error),
        }
    }
}

/// Returns the rule of a pod that a message announces. Its comment names the pod.
fn rule(message: &Message<'_>) -> Option<Rule> {
    if message.kind != NEW_RULE {
        return None;
    }
    // nfgenmsg: the family is its first byte
    let family = match message.payload.first()? {
        2 => Family::V4,
        10 => Family::V6,
        _ => return None,
    };
    let mut places = message.payload.windows(OWNER.len());
    let at = places.position(|place| place == OWNER)?;
    let text = message.payload.get(at + OWNER.len()..)?;
    let uid = text.split(|byte| *byte == 0).next()?;
    Some(Rule {
        seen: SystemTime::now(),
        family,
        owner: String::from_utf8_lossy(uid).into_owned(),
    })
}
