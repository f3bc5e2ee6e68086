//! The demo: the product installed as a user would, the README's Deployment, and every replica's page
//! fetched from outside the cluster.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::artifacts::image::ECHO;
use crate::cluster::Cluster;
use crate::install::{self, picture, rolled_out};
use crate::progress::{Step, out};
use crate::{paths, process, progress};

const ANNOTATION: &str = "tkestack.io/portmapping";
const SELECTOR: &str = "app=hello";

/// A replica, and what its host port answered.
struct Answer {
    pod: String,
    node: String,
    host_ip: String,
    host_port: u64,
    reply: String,
}

/// Shows the product at work in a cluster that is up and has it installed.
pub(crate) fn run(cluster: &Cluster) -> Result<()> {
    let step = Step::start("kubectl apply -f manifests/examples/deployment.yaml");
    let example = with_own_image(cluster)?;
    process::run(
        cluster.kubectl().args(["apply", "-f"]).arg(&example),
        Duration::from_mins(1),
    )?;
    step.done("applied");
    rolled_out(cluster, "default", "deployment/hello")?;
    let answers = ask_all(cluster).inspect_err(|_| picture(cluster, "default"))?;
    let first = answers.first().context("the Deployment has no pod")?;
    out!("\n$ kubectl describe pod {}", first.pod);
    out!(
        "{}",
        cluster
            .kubectl_run(["describe", "pod", &first.pod])?
            .trim_end()
    );
    out!("\nEvery replica's own page, fetched from a host outside the cluster:\n");
    table(&answers);
    out!("");
    footprint(cluster)?;
    let wrong: Vec<_> = answers
        .iter()
        .filter(|a| a.reply != a.pod)
        .map(|a| &*a.pod)
        .collect();
    if !wrong.is_empty() {
        picture(cluster, "default");
        bail!(
            "these pods did not answer with their own name: {}",
            wrong.join(", ")
        );
    }
    Ok(())
}

/// Writes the example with an image that the cluster has: it cannot pull the public one.
fn with_own_image(cluster: &Cluster) -> Result<PathBuf> {
    let container = |field: &str| format!("/spec/template/spec/containers/0/{field}");
    let patch = json!([
        { "op": "replace", "path": container("image"), "value": ECHO },
        { "op": "remove", "path": container("command") },
        { "op": "add", "path": container("args"), "value": ["--http", "9040"] },
    ]);
    let mut kubectl = cluster.kubectl();
    kubectl.args(["patch", "--local", "--type=json", "--output=json"]);
    kubectl.arg(format!("--patch={patch}"));
    let example = paths::manifests().join("examples/deployment.yaml");
    kubectl.arg("--filename").arg(example);
    let patched = process::run(&mut kubectl, Duration::from_mins(1))?;
    let file = cluster
        .note("hello.json")
        .context("the demo runs on a cluster of this harness only")?;
    fs::write(&file, patched).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

fn ask_all(cluster: &Cluster) -> Result<Vec<Answer>> {
    let pods = cluster.kubectl_run(["get", "pods", "-l", SELECTOR, "-o", "json"])?;
    let pods: Value = serde_json::from_str(&pods).context("parse the list of pods")?;
    let pods = pods["items"]
        .as_array()
        .context("kubectl printed no list of pods")?;
    // A pod that an earlier rollout is ending is not a replica any more.
    let pods = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    pods.map(|pod| ask(cluster, pod)).collect()
}

fn ask(cluster: &Cluster, pod: &Value) -> Result<Answer> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&pod["metadata"]["name"]);
    let annotation = text(&pod["metadata"]["annotations"][ANNOTATION]);
    let mapped: Value = serde_json::from_str(&annotation)
        .with_context(|| format!("pod {name} has no mapping: its annotation is {annotation:?}"))?;
    let host_port = mapped[0]["hostPort"].as_u64().with_context(|| {
        format!("pod {name} has no host port: its annotation is {annotation:?}")
    })?;
    let host_ip = text(&pod["status"]["hostIP"]);
    let url = format!("http://{host_ip}:{host_port}/");
    let output = cluster.exec("client", &["curl", "-sS", "--max-time", "5", &url])?;
    let answer = if output.status.success() {
        output.stdout
    } else {
        output.stderr
    };
    Ok(Answer {
        pod: name,
        node: text(&pod["spec"]["nodeName"]),
        host_ip,
        host_port,
        reply: String::from_utf8_lossy(&answer).trim().to_owned(),
    })
}

fn table(answers: &[Answer]) {
    let width = answers
        .iter()
        .map(|answer| answer.pod.len())
        .max()
        .unwrap_or_default();
    out!("{:width$}  {:8}  {:21}  ANSWER", "POD", "NODE", "HOST PORT");
    for Answer {
        pod,
        node,
        host_ip,
        host_port,
        reply,
    } in answers
    {
        out!(
            "{pod:width$}  {node:8}  {:21}  {reply}",
            format!("{host_ip}:{host_port}")
        );
    }
}

/// What the product costs: resident memory of each process, size of each binary.
fn footprint(cluster: &Cluster) -> Result<()> {
    if !cluster.is_ours() {
        return Ok(());
    }
    for name in ["webhook", "enforcer"] {
        let mut memory = cluster.resident_memory(&format!("/{name}"))?;
        memory.sort();
        for (command, kib) in memory {
            #[allow(clippy::cast_precision_loss, reason = "a figure with one decimal")]
            let mib = kib as f64 / 1024.0;
            out!("{command:20} {mib:6.1} MiB resident");
        }
        let target = format!("{}-unknown-linux-musl/release", std::env::consts::ARCH);
        let binary = paths::image_target().join(target).join(name);
        let size = fs::metadata(&binary)
            .with_context(|| format!("look at {}", binary.display()))?
            .len();
        #[allow(clippy::cast_precision_loss, reason = "a figure with one decimal")]
        let mib = size as f64 / 1024.0 / 1024.0;
        out!("{name:20} {mib:6.1} MiB on disk");
    }
    Ok(())
}

/// Installs and shows, in this order; the command line's `demo`.
pub(crate) fn install_and_run(cluster: &mut Cluster) -> Result<()> {
    install::install(cluster)?;
    run(cluster)?;
    let (parts, total) = progress::parts();
    out!(
        "\nIt took {:.0} s. The longest parts, of which some ran at the same time:",
        total.as_secs_f64()
    );
    for (name, took) in parts {
        out!("{:6.1} s  {name}", took.as_secs_f64());
    }
    Ok(())
}
