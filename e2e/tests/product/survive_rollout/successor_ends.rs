//! Does the earlier enforcer act again when its successor ends?

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use e2e::wait::{Probe, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SYSTEM, node_in_rollout, upgrade};
use crate::support::outside::run_at;
use crate::support::parts::{ENFORCER, KEEPER, pids, roll, rolled_out};
use crate::support::pods::{entries, mapped_pod, on_node};
use crate::support::space::Space;
use crate::support::{LIMIT, alone, enforcer, eventually, get};

/// From the end of the successor to the end of a mapping: the kubelet needs most of this to end the pod.
const ACTS_WITHIN: Duration = Duration::from_secs(10);
/// Names the enforcer that may change the rules of its node.
const RIGHT: &str = "/run/portmapping/rules.lock";
const POLL: Duration = Duration::from_millis(20);
/// Kubernetes may end the earlier one first.
const TRIES: usize = 5;

/// What there is on a node before an upgrade.
struct Before {
    enforcer: u32,
    enforcer_pod: String,
    right: Vec<u8>,
    /// The host port of a mapped pod.
    endpoint: SocketAddr,
}

#[test]
fn the_earlier_enforcer_acts_again_when_its_successor_ends() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "rollout-ends", |space| {
            roll(cluster)?;
            for time in 0..TRIES {
                let before = prepare(space, time)?;
                upgrade(cluster)?;
                let took = end_successor(space, time, &before);
                cluster.kubectl_run(["-n", SYSTEM, "rollout", "undo", "ds/enforcer"])?;
                rolled_out(cluster)?;
                if let Some(took) = took? {
                    println!("the mapping ended {took:?} after the successor");
                    ensure!(took <= ACTS_WITHIN, "the earlier enforcer did not act");
                    return Ok(());
                }
            }
            bail!("Kubernetes ended the earlier enforcer first, {TRIES} times")
        })
    })
}

fn name(node: &str, time: usize) -> String {
    format!("goes-{node}-{time}")
}

fn right(cluster: &Cluster, node: &str) -> Result<Vec<u8>> {
    let read = cluster.exec(node, &["cat", RIGHT])?;
    ensure!(read.status.success(), "{read:?}");
    Ok(read.stdout)
}

fn prepare(space: &Space<'_>, time: usize) -> Result<BTreeMap<String, Before>> {
    let cluster = space.cluster;
    let mut found = BTreeMap::new();
    for node in cluster.nodes()? {
        space.create(&on_node(mapped_pod(&name(&node, time)), &node))?;
        let goes = space.ready(&name(&node, time))?;
        let pod = enforcer(cluster, &node)?;
        let [enforcer] = pids(cluster, &node, ENFORCER)?[..] else {
            bail!("not one enforcer on {node}");
        };
        let before = Before {
            enforcer,
            enforcer_pod: pod["metadata"]["name"]
                .as_str()
                .context("no name")?
                .to_owned(),
            right: right(cluster, &node)?,
            endpoint: space.endpoint(&goes, &entries(&goes)?[0])?,
        };
        found.insert(node, before);
    }
    Ok(found)
}

/// Ends the successor of an enforcer once it has taken the node over, as often as the kubelet starts it. Returns
/// how long after that a deleted pod's port is refused; None if Kubernetes ends the earlier one.
fn end_successor(
    space: &Space<'_>,
    time: usize,
    before: &BTreeMap<String, Before>,
) -> Result<Option<Duration>> {
    let cluster = space.cluster;
    let node = eventually("a node to have two", || node_in_rollout(cluster, KEEPER))?;
    let before = before.get(&node).context("a new node")?;
    until("the successor to take over", LIMIT, POLL, || {
        Ok(if right(cluster, &node)? == before.right {
            Probe::Missing("the earlier one has the right".to_owned())
        } else {
            Probe::Done(())
        })
    })?;
    let begun = Instant::now();
    kill_others(cluster, &node, before.enforcer)?;
    let delete = ["delete", "pod", &name(&node, time), "--wait=false"];
    space.kubectl(&delete)?;
    let refused = eventually("the port of the deleted pod to be refused", || {
        kill_others(cluster, &node, before.enforcer)?;
        ensure!(refuses(cluster, before.endpoint)?, "it does not refuse");
        Ok(begun.elapsed())
    });
    let earlier = get(cluster, &["-n", SYSTEM, "pod", &before.enforcer_pod]);
    let stays = earlier.is_ok_and(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    if stays { refused.map(Some) } else { Ok(None) }
}

/// Whether a connection from outside is refused. A short try: the successor must not come back during it.
fn refuses(cluster: &Cluster, address: SocketAddr) -> Result<bool> {
    run_at(cluster, "client", move || {
        let tried = TcpStream::connect_timeout(&address, Duration::from_millis(200));
        tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    })
}

/// SIGKILL to the enforcers of a node, except one.
fn kill_others(cluster: &Cluster, node: &str, except: u32) -> Result<()> {
    for pid in pids(cluster, node, ENFORCER)? {
        if pid != except {
            let pid = Pid::from_raw(i32::try_from(pid)?);
            kill(pid, Signal::SIGKILL).context("kill the successor")?;
        }
    }
    Ok(())
}
