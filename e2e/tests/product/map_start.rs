//! Does the host port of a pod answer as soon as its program starts?

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use e2e::starts::{Call, Collector};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::outside::{Way, at, is_refused, tcp};
use crate::support::pods::{annotated, entries, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{LIMIT, alone, eventually, shared};

const TOGETHER: usize = 20;
const ONE_BY_ONE: usize = 5;

/// A pod whose program announces its start to the collector.
fn announcing(name: &str, collector: &Collector) -> Value {
    let address = collector.address.to_string();
    let ports = json!([{ "containerPort": 9040 }]);
    annotated(
        pod(name, &["--tcp", "9040", "--announce", &address], &ports),
        "",
    )
}

fn judge(calls: &[Call]) -> Result<usize> {
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
            kill(pause_of(space, node, uid)?, Signal::SIGKILL).context("kill the sandbox")?;
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

#[test]
fn a_mapping_ends_and_comes_back_with_the_runtimes_result() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "result", |space| {
            let node = "node1";
            let ports = json!([{ "containerPort": 9040 }]);
            let web = annotated(pod("web", &["--tcp", "9040"], &ports), "");
            space.create(&on_node(web, node))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            let endpoint = space.endpoint(&web, &entry)?;
            space.answers(&web, &entry, Way::Tcp)?;
            let uid = web["metadata"]["uid"].as_str().context("no uid")?;
            let result = result_of(cluster, node, uid)?;
            let text = fs::read(&result)?;
            // as the runtime does when the address is released; the pod itself still runs
            fs::remove_file(&result)?;
            eventually("the host port to refuse connections", || {
                ensure!(is_refused(cluster, endpoint)?, "{endpoint} still answers");
                Ok(())
            })?;
            fs::write(&result, text)?;
            eventually("the pod to be reached again", || {
                space.answers(&web, &entry, Way::Tcp)
            })
        })
    })
}

#[test]
fn a_stale_result_from_before_the_clock_was_set_back_is_ignored() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "set-back", |space| {
            let node = "node1";
            let ports = json!([{ "containerPort": 9040 }]);
            let web = annotated(pod("web", &["--tcp", "9040"], &ports), "");
            space.create(&on_node(web, node))?;
            let before = space.ready("web")?;
            let entry = entries(&before)?.remove(0);
            space.answers(&before, &entry, Way::Tcp)?;
            let uid = before["metadata"]["uid"].as_str().context("no uid")?;
            let result = result_of(cluster, node, uid)?;
            let left_behind = leave_behind(&result, SystemTime::now() + Duration::from_hours(1))?;
            // the enforcer has read it by now, because it has mapped a later pod
            space.create(&on_node(mapped_pod("next"), node))?;
            space.ready("next")?;
            kill(pause_of(space, node, uid)?, Signal::SIGKILL).context("kill the sandbox")?;
            let outcome = eventually("the pod to be reached at its new address", || {
                let after = space.pod("web")?;
                let again = entries(&after)?.remove(0);
                ensure!(
                    after["status"]["podIP"] != before["status"]["podIP"],
                    "still at {}",
                    after["status"]["podIP"]
                );
                ensure!(
                    after["status"]["podIP"] == json!(again.pod_ip),
                    "published for {}",
                    again.pod_ip
                );
                ensure!(again.host_port == entry.host_port, "the port moved");
                space.answers(&after, &again, Way::Tcp)
            });
            fs::remove_file(left_behind)?;
            outcome
        })
    })
}

/// Writes a second result of the same pod, with another sandbox.
fn leave_behind(result: &Path, written: SystemTime) -> Result<PathBuf> {
    let mut left: Value = serde_json::from_slice(&fs::read(result)?)?;
    left["containerId"] = json!("left-behind");
    let path = result.with_file_name("left-behind-eth0");
    let mut file = File::create(&path)?;
    file.write_all(left.to_string().as_bytes())?;
    // before it is closed, and so before it is read
    file.set_modified(written)?;
    Ok(path)
}

/// The runtime's CNI result of a pod.
fn result_of(cluster: &Cluster, node: &str, uid: &str) -> Result<PathBuf> {
    let folder = format!("/proc/{}/root/var/lib/cni/results", cluster.pid(node)?);
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let path = entry?.path();
        let name = path.to_string_lossy();
        if name.ends_with("-eth0") && fs::read_to_string(&path).is_ok_and(|t| t.contains(uid)) {
            return Ok(path);
        }
    }
    bail!("no CNI result of pod {uid} on {node}")
}

/// The pause process of a pod's sandbox.
fn pause_of(space: &Space<'_>, node: &str, uid: &str) -> Result<Pid> {
    for pid in space
        .cluster
        .processes_running(node, &["/echo", "--pause"])?
    {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        if groups.contains(uid) {
            return Ok(Pid::from_raw(i32::try_from(pid)?));
        }
    }
    bail!("no sandbox of pod {uid} on {node}")
}
