//! The product's programs: their processes on a node, their flags, their logs.

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{eventually, get};

const SYSTEM: &str = install::NAMESPACE;
pub(crate) const ENFORCER: [&str; 2] = ["/enforcer", "run"];
pub(crate) const KEEPER: [&str; 2] = ["/enforcer", "keep"];

/// Pids, as this machine sees them, of a program of ours on a node.
pub(crate) fn pids(cluster: &Cluster, node: &str, program: [&str; 2]) -> Result<Vec<u32>> {
    let processes = cluster.processes(node)?.into_iter();
    let runs = |arguments: &[std::ffi::OsString]| {
        arguments.len() > 1
            && arguments
                .iter()
                .zip(program)
                .all(|(has, wanted)| has == wanted)
    };
    Ok(processes
        .filter(|process| runs(&process.arguments))
        .map(|process| process.pid)
        .collect())
}

/// SIGKILL to every process of a program on a node; how many there were.
pub(crate) fn kill_all(cluster: &Cluster, node: &str, program: [&str; 2]) -> Result<usize> {
    let found = pids(cluster, node, program)?;
    for pid in &found {
        let pid = Pid::from_raw(i32::try_from(*pid)?);
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill {program:?}"))?;
    }
    Ok(found.len())
}

/// Waits for the end of a rolling update.
pub(crate) fn rolled_out(cluster: &Cluster) -> Result<()> {
    install::rolled_out(cluster, SYSTEM, "daemonset/enforcer")?;
    // the old pods, too, are gone: one of each program per node
    eventually("the earlier enforcers to end", || {
        for node in cluster.nodes()? {
            for program in [ENFORCER, KEEPER] {
                let count = pids(cluster, &node, program)?.len();
                ensure!(count == 1, "{count} times {program:?} on {node}");
            }
        }
        Ok(())
    })
}

/// A rolling update to new pods, which have never crashed: the kubelet restarts them without back-off.
pub(crate) fn roll(cluster: &Cluster) -> Result<()> {
    cluster.kubectl_run(["-n", SYSTEM, "rollout", "restart", "ds/enforcer"])?;
    rolled_out(cluster)
}

/// Runs `act` while enforcer and keeper have more flags than usual.
pub(crate) fn with_flags<T>(
    cluster: &Cluster,
    keeper: &[&str],
    enforcer: &[&str],
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let set = get(cluster, &["-n", SYSTEM, "ds", "enforcer"])?;
    let spec = &set["spec"]["template"]["spec"];
    let usual = [
        &spec["initContainers"][0]["args"],
        &spec["containers"][0]["args"],
    ];
    let with = |usual: &Value, more: &[&str]| {
        let mut all = usual.as_array().cloned().unwrap_or_default();
        all.extend(more.iter().map(|flag| json!(flag)));
        json!(all)
    };
    start_with(cluster, &with(usual[0], keeper), &with(usual[1], enforcer))?;
    let outcome = act();
    start_with(cluster, usual[0], usual[1])?;
    outcome
}

/// Gives the enforcer these capabilities and no other.
pub(crate) fn add_capabilities(cluster: &Cluster, capabilities: &[&str]) -> Result<()> {
    patch(
        cluster,
        &json!({ "containers": [{
            "name": "enforcer",
            "securityContext": { "capabilities": { "add": capabilities } },
        }] }),
    )
}

fn start_with(cluster: &Cluster, keeper: &Value, enforcer: &Value) -> Result<()> {
    patch(
        cluster,
        &json!({
            "initContainers": [{ "name": "keeper", "args": keeper }],
            "containers": [{ "name": "enforcer", "args": enforcer }],
        }),
    )
}

fn patch(cluster: &Cluster, pod_spec: &Value) -> Result<()> {
    let body = json!({ "spec": { "template": { "spec": pod_spec } } });
    cluster.kubectl_run([
        "-n",
        SYSTEM,
        "patch",
        "ds",
        "enforcer",
        "-p",
        &body.to_string(),
    ])?;
    rolled_out(cluster)
}

/// The lines a container of an enforcer's pod has logged since its last start.
pub(crate) fn log(cluster: &Cluster, pod: &Value, container: &str) -> Result<Vec<Value>> {
    let name = pod["metadata"]["name"]
        .as_str()
        .context("a pod without a name")?;
    let text = cluster.kubectl_run(["-n", SYSTEM, "logs", name, "-c", container])?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}
