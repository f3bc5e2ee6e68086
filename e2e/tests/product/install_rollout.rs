//! Does an update of the enforcers go on where one node is stuck, and does it spare the pods of a full node?
//!
//! Both tests need clusters of their own and minutes, so they run by command:
//! `cargo test -p e2e --test product install_rollout -- --ignored --test-threads 1`

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::wait::{Probe, until};
use e2e::{Cluster, Config, install};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::install_clusters::chart;
use crate::support::outside::Way;
use crate::support::parts::rolled_out;
use crate::support::pods::{entries, is_true, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{POLL, config, enforcer, eventually, get};

const SYSTEM: &str = install::NAMESPACE;
/// A class that evicts a pod where it finds no room; the default one waits.
const CLASS: &str = "enforcer.priorityClassName=system-node-critical";
/// How long a node may take to start all pods that it can have.
const FULL: Duration = Duration::from_mins(10);

fn restart(cluster: &Cluster) -> Result<()> {
    cluster.kubectl_run(["-n", SYSTEM, "rollout", "restart", "ds/enforcer"])?;
    Ok(())
}

fn uid(object: &Value) -> Result<String> {
    let uid = object["metadata"]["uid"].as_str();
    Ok(uid.context("no uid")?.to_owned())
}

#[test]
#[ignore = "three nodes; by command"]
fn one_stuck_node_does_not_stop_the_update_of_the_others() -> Result<()> {
    let mut cluster = Cluster::start(&Config {
        nodes: 3,
        ..config("stuck")
    })?;
    install::install(&mut cluster)?;
    let nodes = cluster.nodes()?;
    let (stuck, others) = nodes.split_first().context("no node")?;
    Space::with(&cluster, "stuck", |space| {
        space.create(&on_node(mapped_pod("kept"), stuck))?;
        let kept = space.ready("kept")?;
        let before = others.iter().map(|node| uid(&enforcer(&cluster, node)?));
        let before = before.collect::<Result<Vec<_>>>()?;
        cluster.signal_component(stuck, "kubelet", Signal::SIGSTOP)?;
        let start = Instant::now();
        // 10 % of three nodes is one: where the stuck node is the first, it uses up all of the surge
        restart(&cluster)?;
        for (node, before) in others.iter().zip(before) {
            eventually(&format!("{node} to be updated"), || {
                let now = enforcer(&cluster, node)?;
                ensure!(uid(&now)? != before && is_true(&now, "Ready"), "not yet");
                Ok(())
            })?;
            let seconds = start.elapsed().as_secs();
            println!("{node} is updated {seconds} s after the kubelet of {stuck} was frozen");
        }
        space.answers(&kept, &entries(&kept)?[0], Way::Http)?;
        cluster.signal_component(stuck, "kubelet", Signal::SIGCONT)?;
        rolled_out(&cluster)?;
        ensure!(entries(&space.ready("kept")?)? == entries(&kept)?, "moved");
        space.answers(&kept, &entries(&kept)?[0], Way::Http)
    })?;
    cluster.stop()
}

#[test]
#[ignore = "fills a node with all pods that it can have; by command"]
fn the_update_of_a_full_node_evicts_no_pod_unless_its_class_preempts() -> Result<()> {
    let mut cluster = Cluster::start(&Config {
        nodes: 1,
        ..config("full")
    })?;
    e2e::artifacts::go::release_tools()?;
    install::install(&mut cluster)?;
    let node = cluster.nodes()?.remove(0);
    Space::with(&cluster, "full", |space| {
        let room = room(&cluster, &node)?;
        let names: Vec<_> = (0..room).map(|index| format!("user-{index}")).collect();
        let user = |name: &String| on_node(pod(name, &["--http", "9040"], &json!([])), &node);
        let pods: Vec<_> = names.iter().map(user).collect();
        space.create(&json!({ "apiVersion": "v1", "kind": "List", "items": pods }))?;
        until("all pods of the node to run", FULL, POLL * 10, || {
            let ready = living(space)?
                .iter()
                .filter(|pod| is_true(pod, "Ready"))
                .count();
            Ok(if ready == room {
                Probe::Done(())
            } else {
                Probe::Missing(format!("{ready} of {room}"))
            })
        })?;
        println!("{room} pods of a user fill the node");
        let before = uid(&enforcer(&cluster, &node)?)?;
        restart(&cluster)?;
        eventually("the scheduler to find no room", || {
            let text = json!(enforcers(&cluster)?).to_string();
            ensure!(text.contains("Too many pods"), "{text}");
            Ok(())
        })?;
        ensure!(living(space)?.len() == room, "a pod was evicted");
        let old = enforcers(&cluster)?;
        let goes_on = |pod: &Value| uid(pod).is_ok_and(|it| it == before) && is_true(pod, "Ready");
        ensure!(old.iter().any(goes_on), "the old one ended: {old:?}");
        space.kubectl(&["delete", "pod", &names[0]])?;
        rolled_out(&cluster)?;
        ensure!(living(space)?.len() == room - 1, "a pod was evicted");

        // one place is free, so this update of the class itself evicts none
        chart(&cluster, &["install", "--take-ownership"], CLASS)?;
        rolled_out(&cluster)?;
        space.create(&user(&names[0]))?;
        eventually("the node to be full again", || {
            ensure!(is_true(&space.pod(&names[0])?, "Ready"), "not Ready");
            Ok(())
        })?;
        restart(&cluster)?;
        rolled_out(&cluster)?;
        let left = living(space)?.len();
        ensure!(left == room - 1, "{left} pods of {room} are left");
        println!("{CLASS} evicts one of them");
        Ok(())
    })?;
    cluster.stop()
}

/// The enforcers, also those that have no node yet.
fn enforcers(cluster: &Cluster) -> Result<Vec<Value>> {
    let which = [
        "-n",
        SYSTEM,
        "pods",
        "-l",
        "app.kubernetes.io/component=enforcer",
    ];
    let pods = get(cluster, &which)?;
    Ok(pods["items"].as_array().context("no list")?.clone())
}

/// How many pods a node can still have.
fn room(cluster: &Cluster, node: &str) -> Result<usize> {
    let all = get(cluster, &["node", node])?["status"]["allocatable"]["pods"].clone();
    let all: usize = all.as_str().context("no number of pods")?.parse()?;
    let pods = get(cluster, &["pods", "-A"])?;
    let pods = pods["items"].as_array().context("no list")?;
    // the pods of an earlier rollout may still be going
    let there = pods.iter().filter(|pod| {
        pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
    });
    all.checked_sub(there.count())
        .context("more pods than the node can have")
}

/// The pods that nothing is about to end.
fn living(space: &Space<'_>) -> Result<Vec<Value>> {
    let pods = space.get(&["pods"])?;
    let pods = pods["items"].as_array().context("no list")?.iter();
    let lives = |pod: &&Value| {
        pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Failed"
    };
    Ok(pods.filter(lives).cloned().collect())
}
