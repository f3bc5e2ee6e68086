//! Does the host port of a pod answer as soon as its program starts?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use e2e::starts::{Call, Collector};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::outside::{Way, at, tcp};
use crate::support::pods::{annotated, entries, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{LIMIT, alone, eventually, shared};

const TOGETHER: usize = 20;
const ONE_BY_ONE: usize = 5;

/// A pod whose program announces its start to the collector.
pub(crate) fn announcing(name: &str, collector: &Collector) -> Value {
    let address = collector.address.to_string();
    let ports = json!([{ "containerPort": 9040 }]);
    annotated(
        pod(name, &["--tcp", "9040", "--announce", &address], &ports),
        "",
    )
}

pub(crate) fn judge(calls: &[Call]) -> Result<usize> {
    let failed: Vec<String> = calls
        .iter()
        .filter(|call| !call.reached())
        .map(|call| {
            let took = call.answered.duration_since(call.begun).unwrap_or_default();
            let (pod, answer, known) = (&call.pod, &call.answer, call.known);
            format!(
                "{pod}: {answer:?} after {took:?}, published before its program started: {known}"
            )
        })
        .collect();
    let (count, all) = (failed.len(), calls.len());
    ensure!(
        count == 0,
        "{count} of {all} pods were not reached: {failed:?}"
    );
    Ok(calls.iter().filter(|call| call.known).count())
}

#[test]
fn a_pod_is_reached_when_its_program_starts() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "first-words", |space| {
            let collector = Collector::start(cluster, &space.name)?;
            let mut known = 0;
            for n in 0..ONE_BY_ONE {
                space.create(&announcing(&format!("alone-{n}"), &collector))?;
                known += judge(&collector.take(1, LIMIT)?)?;
            }
            let pods: Vec<Value> = (0..TOGETHER)
                .map(|n| announcing(&format!("together-{n}"), &collector))
                .collect();
            space.create(&json!({ "apiVersion": "v1", "kind": "List", "items": pods }))?;
            known += judge(&collector.take(TOGETHER, LIMIT)?)?;
            let all = ONE_BY_ONE + TOGETHER;
            println!(
                "{all} of {all} pods answered when their programs started; {known} were published by then"
            );
            Ok(())
        })
    })
}

#[test]
fn a_new_sandbox_keeps_the_host_ports() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "new-sandbox", |space| {
            let node = "node1";
            let web = pod(
                "web",
                &["--tcp", "9040"],
                &json!([{ "containerPort": 9040 }]),
            );
            space.create(&on_node(annotated(web, ""), node))?;
            let before = space.ready("web")?;
            let entry = entries(&before)?.remove(0);
            let endpoint = space.endpoint(&before, &entry)?;
            space.answers(&before, &entry, Way::Tcp)?;
            let stop = Arc::new(AtomicBool::new(false));
            let until = Arc::clone(&stop);
            let caller = at(cluster, "client", move || {
                let mut answers = Vec::new();
                while !until.load(Ordering::Relaxed) {
                    answers.extend(tcp(endpoint));
                    std::thread::sleep(Duration::from_millis(5));
                }
                answers
            })?;
            let uid = before["metadata"]["uid"].as_str().context("no uid")?;
            end_sandbox(cluster, node, uid)?;
            // other pods need addresses, perhaps the one that has just become free
            for n in 0..10 {
                space.create(&on_node(mapped_pod(&format!("other-{n}")), node))?;
            }
            let after = eventually("the pod to be back at a new address", || {
                let after = space.pod("web")?;
                ensure!(
                    after["status"]["podIP"] != before["status"]["podIP"],
                    "still at {}",
                    after["status"]["podIP"]
                );
                let again = entries(&after)?.remove(0);
                ensure!(
                    after["status"]["podIP"] == json!(again.pod_ip),
                    "published for {}",
                    again.pod_ip
                );
                space.answers(&after, &again, Way::Tcp)?;
                Ok(after)
            })?;
            stop.store(true, Ordering::Relaxed);
            let answers = caller.join().ok().context("the caller panicked")??;
            let wrong: Vec<&String> = answers.iter().filter(|name| *name != "web").collect();
            ensure!(wrong.is_empty(), "other pods answered: {wrong:?}");
            ensure!(!answers.is_empty(), "nothing was proven");
            let again = entries(&after)?.remove(0);
            ensure!(
                again.host_port == entry.host_port,
                "the port moved to {}",
                again.host_port
            );
            ensure!(
                before["metadata"]["uid"] == after["metadata"]["uid"],
                "it is another pod"
            );
            Ok(())
        })
    })
}

/// Kills the pause process of a pod's sandbox.
pub(crate) fn end_sandbox(cluster: &Cluster, node: &str, uid: &str) -> Result<()> {
    for pid in cluster.processes_running(node, &["/echo", "--pause"])? {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if groups.contains(uid) {
            let pid = Pid::from_raw(i32::try_from(pid)?);
            return kill(pid, Signal::SIGKILL).context("kill the sandbox");
        }
    }
    bail!("no sandbox of pod {uid} on {node}")
}
