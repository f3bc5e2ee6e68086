//! What do users notice of a rollout that fails, or that is undone midway?

mod ready_nodes;
mod successor_ends;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::artifacts::image::NEXT_ENFORCER;
use e2e::wait::{Probe, until};
use e2e::{Cluster, install, paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use self::ready_nodes::ReadyNodes;
use crate::support::outside::{Way, at, is_refused, tcp};
use crate::support::parts::{ENFORCER, KEEPER, kill_all, pids, roll, rolled_out};
use crate::support::pods::{annotated, entries, is_true, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::streams::steal;
use crate::support::{ANNOTATION, LIMIT, POLL, alone, config, eventually, get, node_addresses};

const SYSTEM: &str = install::NAMESPACE;
/// Mapped pods on each of the two nodes.
const PODS: usize = 25;
/// The enforcer's pods.
const ENFORCERS: &str = "app.kubernetes.io/component=enforcer";
/// How long the next image is not there.
const IMAGE_COMES: Duration = Duration::from_secs(9);
/// What an upgrade rolls out.
const WORKLOADS: [&str; 2] = ["deployment/webhook", "daemonset/enforcer"];
/// Rollouts that are undone, one at each moment.
const UNDONE: usize = 3;

/// The ports that a process could bind, and its tries.
type Stolen = (BTreeSet<u16>, u64);

/// Mapped pods on every node, with processes that call them and that try to bind their ports.
struct Watched {
    stop: Arc<AtomicBool>,
    caller: JoinHandle<Result<(u64, Vec<String>)>>,
    thieves: Vec<JoinHandle<Result<Stolen>>>,
}

impl Watched {
    fn start(space: &Space<'_>) -> Result<Self> {
        let nodes = space.cluster.nodes()?;
        let ports = json!([{ "containerPort": 9040 }]);
        let mut all = Vec::new();
        for (node, index) in nodes
            .iter()
            .flat_map(|node| (0..PODS).map(move |i| (node, i)))
        {
            let echo = pod(&format!("{node}-{index}"), &["--tcp", "9040"], &ports);
            all.push(on_node(annotated(echo, ""), node));
        }
        space.create(&json!({ "apiVersion": "v1", "kind": "List", "items": all }))?;
        let pods = eventually("every pod to be Ready and mapped", || {
            let pods = space.get(&["pods"])?;
            let pods = pods["items"].as_array().context("no list")?.clone();
            let ready = |pod: &&Value| is_true(pod, "Ready") && is_true(pod, ANNOTATION);
            let count = pods.iter().filter(ready).count();
            ensure!(count == all.len(), "{count} of {}", all.len());
            Ok(pods)
        })?;
        let addresses = node_addresses(space.cluster)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut endpoints = BTreeMap::new();
        let mut thieves = Vec::new();
        for (node, address) in addresses {
            let mut held = Vec::new();
            for pod in pods
                .iter()
                .filter(|pod| pod["spec"]["nodeName"] == node.as_str())
            {
                let port = entries(pod)?.remove(0).host_port;
                let name = pod["metadata"]["name"].as_str().context("no name")?;
                held.push(port);
                endpoints.insert(name.to_owned(), SocketAddr::new(address.parse()?, port));
            }
            let until = Arc::clone(&stop);
            thieves.push(at(space.cluster, &node, move || steal(&held, &until))?);
        }
        let until = Arc::clone(&stop);
        let caller = at(space.cluster, "client", move || call(&endpoints, &until))?;
        Ok(Self {
            stop,
            caller,
            thieves,
        })
    }

    /// Fails if a port was bound by another process, or a call was not answered by its pod.
    fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let (calls, wrong) = self.caller.join().ok().context("the caller panicked")??;
        println!("{calls} calls");
        ensure!(calls > 100, "nothing was proven");
        let count = wrong.len();
        ensure!(wrong.is_empty(), "{count} of {calls} calls: {wrong:?}");
        for thief in self.thieves {
            let (stolen, tries) = thief.join().ok().context("a thief panicked")??;
            println!("{tries} tries to take a port");
            ensure!(tries > 100, "nothing was proven");
            ensure!(stolen.is_empty(), "held ports were taken: {stolen:?}");
        }
        Ok(())
    }
}

/// Calls each pod in turn; returns the number of calls, and those that its pod did not answer.
fn call(endpoints: &BTreeMap<String, SocketAddr>, stop: &AtomicBool) -> (u64, Vec<String>) {
    let (mut calls, mut wrong) = (0, Vec::new());
    for (name, endpoint) in endpoints.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        calls += 1;
        match tcp(*endpoint) {
            Ok(answer) if answer == *name => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (calls, wrong)
}

fn kill_newest(cluster: &Cluster, node: &str) -> Result<()> {
    let newest = pids(cluster, node, ENFORCER)?.into_iter().max();
    let pid = i32::try_from(newest.context("no enforcer")?)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the new enforcer")
}

/// The node on which a program runs in two pods.
fn node_in_rollout(cluster: &Cluster, program: [&str; 2]) -> Result<String> {
    for node in cluster.nodes()? {
        if pids(cluster, &node, program)?.len() > 1 {
            return Ok(node);
        }
    }
    bail!("no node has two processes {program:?}")
}

#[test]
fn an_enforcer_that_cannot_start_leaves_the_earlier_one_on_duty() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "rollout-bad-flag", |space| {
            roll(cluster)?;
            let watched = Watched::start(space)?;
            for node in cluster.nodes()? {
                space.create(&on_node(mapped_pod(&format!("goes-{node}")), &node))?;
            }
            let mut gone = Vec::new();
            for node in cluster.nodes()? {
                let pod = space.ready(&format!("goes-{node}"))?;
                gone.push(space.endpoint(&pod, &entries(&pod)?[0])?);
            }

            let args = json!(["run", "--check-every=often"]);
            let body = json!({ "spec": { "template": { "spec": {
                "containers": [{ "name": "enforcer", "args": args }],
            } } } });
            let body = body.to_string();
            cluster.kubectl_run(["-n", SYSTEM, "patch", "ds", "enforcer", "-p", &body])?;
            eventually("the new enforcer to fail again and again", || {
                let pods = get(cluster, &["-n", SYSTEM, "pods"])?;
                let pods = pods["items"].as_array().context("no list")?;
                let fails = |pod: &Value| {
                    let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
                    pod["spec"]["containers"][0]["args"] == args && restarts.as_u64() >= Some(2)
                };
                ensure!(pods.iter().any(fails), "no pod has restarted twice");
                Ok(())
            })?;
            node_in_rollout(cluster, KEEPER)?;

            // whatever the node, an enforcer acts: a new pod is mapped, and a deleted one is not
            for (node, endpoint) in cluster.nodes()?.iter().zip(&gone) {
                let name = format!("comes-{node}");
                space.create(&on_node(mapped_pod(&name), node))?;
                let pod = space.ready(&name)?;
                space.answers(&pod, &entries(&pod)?[0], Way::Http)?;
                space.kubectl(&["delete", "pod", &format!("goes-{node}")])?;
                eventually("the port of the deleted pod to be refused", || {
                    ensure!(is_refused(cluster, *endpoint)?, "{endpoint} answers");
                    Ok(())
                })?;
            }
            let set = get(cluster, &["-n", SYSTEM, "ds", "enforcer"])?;
            let status = &set["status"];
            ensure!(
                status["numberAvailable"] == status["desiredNumberScheduled"],
                "an earlier enforcer is not available: {status}"
            );

            cluster.kubectl_run(["-n", SYSTEM, "rollout", "undo", "ds/enforcer"])?;
            rolled_out(cluster)?;
            watched.finish()
        })
    })
}

#[test]
fn an_upgrade_undone_midway_loses_no_port_and_no_call() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "rollout-undone", |space| {
            roll(cluster)?;
            let watched = Watched::start(space)?;
            let mut ready = Some(ReadyNodes::watch(cluster)?);
            for round in 0..UNDONE {
                let kills = round % 3 == 2;
                // one that is killed when it is Ready leaves its node without a Ready one for a moment
                if kills && let Some(ready) = ready.take() {
                    ready.finish()?;
                }
                upgrade(cluster)?;
                // before its enforcer runs, when it runs, and when it has been killed while it runs
                let program = if round % 3 == 0 { KEEPER } else { ENFORCER };
                let node = eventually("a node to have two", || node_in_rollout(cluster, program))?;
                if kills {
                    kill_newest(cluster, &node)?;
                }
                cluster.kubectl_run(["-n", SYSTEM, "rollout", "undo", "ds/enforcer"])?;
                rolled_out(cluster)?;
                let name = format!("after-{round}");
                space.create(&on_node(mapped_pod(&name), &node))?;
                let pod = space.ready(&name)?;
                space.answers(&pod, &entries(&pod)?[0], Way::Http)?;
            }
            let ready = ReadyNodes::watch(cluster)?;
            // to the end, and back, with the webhook; users create pods during that time
            for (round, back) in [false, true].into_iter().enumerate() {
                if back {
                    cluster.kubectl_run(["-n", SYSTEM, "rollout", "undo", "ds/enforcer"])?;
                } else {
                    upgrade(cluster)?;
                }
                cluster.kubectl_run(["-n", SYSTEM, "rollout", "restart", "deploy/webhook"])?;
                create_pods_during_rollouts(space, &format!("during-{round}"))?;
                rolled_out(cluster)?;
            }
            ready.finish()?;
            watched.finish()
        })
    })
}

/// Kubernetes ends the pod of an enforcer that crashes during an upgrade, although the next one has only been
/// created.
#[test]
fn ports_stay_held_while_the_next_enforcer_waits_for_its_image() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "rollout-image", |space| {
            roll(cluster)?;
            let watched = Watched::start(space)?;
            set_image(cluster, "localhost/portmapping-enforcer:is-not-there")?;
            let all = || -> Result<Vec<Value>> {
                let all = get(cluster, &["-n", SYSTEM, "pods", "-l", ENFORCERS])?;
                Ok(all["items"].as_array().context("no list")?.clone())
            };
            let is_next = |pod: &Value| {
                let image = pod["spec"]["containers"][0]["image"].as_str();
                image.is_some_and(|image| image.ends_with(":is-not-there"))
            };
            let node = eventually("the next enforcer to wait for its image", || {
                let next = all()?.into_iter().find(is_next).context("no pod")?;
                let status = &next["status"]["initContainerStatuses"][0]["state"];
                ensure!(status["waiting"].is_object(), "{status}");
                let node = next["spec"]["nodeName"].as_str();
                node.map(str::to_owned).context("not scheduled")
            })?;
            kill_all(cluster, &node, ENFORCER)?;
            eventually("Kubernetes to end the earlier one", || {
                let here = |pod: &&Value| pod["spec"]["nodeName"] == node.as_str();
                let all = all()?;
                let mut earlier = all.iter().filter(here).filter(|pod| !is_next(pod));
                let ends = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
                ensure!(earlier.all(ends), "it is not to end");
                Ok(())
            })?;
            // a keeper that gives up does so in this time
            std::thread::sleep(IMAGE_COMES);
            cluster.kubectl_run(["-n", SYSTEM, "rollout", "undo", "ds/enforcer"])?;
            rolled_out(cluster)?;
            watched.finish()
        })
    })
}

#[test]
fn an_enforcer_that_is_deleted_by_hand_hands_its_ports_over() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "rollout-delete", |space| {
            roll(cluster)?;
            let watched = Watched::start(space)?;
            for node in cluster.nodes()? {
                let of_node = format!("--field-selector=spec.nodeName={node}");
                cluster.kubectl_run(["-n", SYSTEM, "delete", "pod", "-l", ENFORCERS, &of_node])?;
                rolled_out(cluster)?;
            }
            watched.finish()
        })
    })
}

fn set_image(cluster: &Cluster, image: &str) -> Result<()> {
    let [keeper, enforcer] = ["keeper", "enforcer"].map(|it| format!("{it}={image}"));
    let set = ["-n", SYSTEM, "set", "image", "ds/enforcer"];
    let set = set.into_iter().chain([keeper.as_str(), &enforcer]);
    cluster.kubectl_run(set).map(drop)
}

/// Begins an upgrade of the enforcer to the image of a later build.
fn upgrade(cluster: &Cluster) -> Result<()> {
    set_image(cluster, NEXT_ENFORCER)
}

/// Creates pods until the rollouts are at their end. None is refused, and each is mapped.
fn create_pods_during_rollouts(space: &Space<'_>, prefix: &str) -> Result<()> {
    let (mut names, mut refused) = (Vec::new(), Vec::new());
    until("the end of the upgrade", LIMIT, POLL, || {
        let name = format!("{prefix}-{}", names.len());
        refused.extend(space.create(&mapped_pod(&name)).err());
        names.push(name);
        for workload in WORKLOADS {
            let status = ["-n", SYSTEM, "rollout", "status", workload, "--watch=false"];
            let status = space.cluster.kubectl_run(status)?;
            if !status.contains("successfully rolled out") {
                return Ok(Probe::Missing(status));
            }
        }
        Ok(Probe::Done(()))
    })?;
    println!("{} pods were created during the upgrade", names.len());
    ensure!(refused.is_empty(), "refused pods: {refused:?}");
    for name in names {
        let pod = space.ready(&name)?;
        space.answers(&pod, &entries(&pod)?[0], Way::Http)?;
    }
    Ok(())
}

/// EARLIER is a directory with a `kustomization.yaml` that installs an earlier version, and archives of its images, `*.tar`.
#[test]
#[ignore = "needs an earlier version; by command"]
fn an_upgrade_from_an_earlier_version_loses_no_port_no_call_and_no_pod() -> Result<()> {
    let earlier = std::env::var_os("EARLIER").context("EARLIER names no directory")?;
    let mut archives = Vec::new();
    for file in std::fs::read_dir(&earlier).context("read EARLIER")? {
        archives.push(file?.path());
    }
    archives.retain(|file| file.extension().is_some_and(|end| end == "tar"));
    let mut cluster = Cluster::start(&config("upgrade"))?;
    cluster.load_images(&archives)?;
    let cluster = cluster;
    cluster.kubectl_run(["apply", "-k", &earlier.to_string_lossy()])?;
    for workload in WORKLOADS {
        install::rolled_out(&cluster, SYSTEM, workload)?;
    }
    Space::with(&cluster, "upgrade", |space| {
        let watched = Watched::start(space)?;
        let base = paths::manifests().join("base");
        cluster.kubectl_run(["apply", "-k", &base.to_string_lossy()])?;
        create_pods_during_rollouts(space, "during")?;
        rolled_out(&cluster)?;
        watched.finish()
    })?;
    cluster.stop()
}
