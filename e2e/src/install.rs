//! Installs the product as a user does: `kubectl apply -k manifests/base`, or the overlay for the cluster's
//! CNI, then wait for it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::progress::{Step, say};
use crate::versions::Cni;
use crate::{paths, process};

/// Where the product runs.
pub const NAMESPACE: &str = "portmapping-system";
const WORKLOADS: [&str; 2] = ["deployment/webhook", "daemonset/enforcer"];
const ROLLOUT_LIMIT: Duration = Duration::from_mins(3);

/// Builds the product's images, puts them on the nodes, applies the manifests for the cluster's CNI, and
/// returns when webhook and enforcer are rolled out.
pub fn install(cluster: &mut Cluster) -> Result<()> {
    let name = match cluster.config().map(|config| config.cni) {
        Some(Cni::Cilium(_)) => "overlays/cilium",
        _ => "base",
    };
    let base = paths::manifests().join(name);
    if !base.join("kustomization.yaml").is_file() {
        bail!(
            "nothing to install: {} has no kustomization.yaml",
            base.display()
        );
    }
    let images = cluster.load_product()?;
    let note = cluster.note("installed");
    let before = note.as_ref().and_then(|note| fs::read_to_string(note).ok());
    let step = Step::start(format!("kubectl apply -k manifests/{name}"));
    process::run(
        cluster.kubectl().args(["apply", "-k"]).arg(&base),
        Duration::from_mins(1),
    )?;
    if before.is_some() && before != images {
        // The image names do not change, so running pods do not restart by themselves.
        let mut restart = cluster.kubectl();
        restart
            .args(["rollout", "restart", "-n", NAMESPACE])
            .args(WORKLOADS);
        process::run(&mut restart, Duration::from_mins(1))?;
    }
    if let (Some(note), Some(images)) = (note, images) {
        fs::write(&note, images).with_context(|| format!("write {}", note.display()))?;
    }
    step.done("applied");
    for workload in WORKLOADS {
        rolled_out(cluster, NAMESPACE, workload)?;
    }
    Ok(())
}

/// Waits for a rollout; on failure prints the state of the cluster before it returns the error.
pub fn rolled_out(cluster: &Cluster, namespace: &str, workload: &str) -> Result<()> {
    let step = Step::start(format!("rollout of {workload}"));
    let mut status = cluster.kubectl();
    let limit = format!("--timeout={}s", ROLLOUT_LIMIT.as_secs());
    status.args(["rollout", "status", "-n", namespace, workload, &limit]);
    if let Err(error) = process::run_long(
        workload,
        &mut status,
        ROLLOUT_LIMIT + Duration::from_secs(20),
    ) {
        picture(cluster, namespace);
        return Err(error).with_context(|| format!("{workload} in {namespace} did not roll out"));
    }
    step.done("done");
    Ok(())
}

/// Prints pods, events and the last log lines of a namespace.
pub fn picture(cluster: &Cluster, namespace: &str) {
    let show = |what: &str, command: &mut Command| {
        say(format_args!("{what}:"));
        match process::output(command, Duration::from_secs(30)) {
            Ok(output) => {
                eprint!("{}", String::from_utf8_lossy(&output.stdout));
                eprint!("{}", String::from_utf8_lossy(&output.stderr));
            }
            Err(error) => eprintln!("{error:#}"),
        }
    };
    show(
        "all pods",
        cluster.kubectl().args(["get", "pods", "-A", "-o", "wide"]),
    );
    let by_time = "--sort-by=.metadata.creationTimestamp";
    show(
        "events",
        cluster
            .kubectl()
            .args(["get", "events", "-n", namespace, by_time]),
    );
    show(
        "states of the pods that are not Ready",
        cluster.kubectl().args([
            "get",
            "pods",
            "-n",
            namespace,
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}{\"\\n  \"}{.status.initContainerStatuses[*].state}\
             {\"\\n  \"}{.status.containerStatuses[*].state}{\"\\n\"}{end}",
        ]),
    );
    if namespace == NAMESPACE {
        let mut logs = cluster.kubectl();
        logs.args(["logs", "-n", namespace, "--all-containers", "--prefix"]);
        logs.args(["--tail=15", "-l", "app.kubernetes.io/name=portmapping"]);
        show("logs", &mut logs);
    }
}
