//! The harness itself: a cluster comes up, a node dies and comes back, programs are stopped and resumed,
//! and nothing is left at the end.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Config};

const PODS: &str = r#"{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "echo"},
    "spec": {"selector": {"matchLabels": {"app": "echo"}}, "template": {
        "metadata": {"labels": {"app": "echo"}},
        "spec": {"containers": [{"name": "echo", "image": "localhost/echo:1",
            "args": ["--http", "9040"], "ports": [{"containerPort": 9040, "hostPort": 18080}]}]}}}}"#;

#[test]
fn a_cluster_serves_loses_a_node_and_leaves_nothing() -> Result<()> {
    let name = format!("harness-{}", std::process::id());
    let cluster = Cluster::start(&Config {
        name: name.clone(),
        product: false,
        program: Some(env!("CARGO_BIN_EXE_e2e").into()),
        ..Config::default()
    })?;
    let manifest = cluster.logs()?.join("echo.json");
    fs::write(&manifest, PODS)?;
    cluster.kubectl_run(["apply".as_ref(), "-f".as_ref(), manifest.as_os_str()])?;
    rolled_out(&cluster)?;
    for node in ["node1", "node2"] {
        answers(&cluster, node)?;
    }

    let fabric = mac(&cluster)?;
    cluster.kill_node(2)?;
    ensure!(cluster.nodes()? == ["node1"], "node2 is still there");
    answers(&cluster, "node1")?;
    cluster.add_node(2)?;
    // Its old pods are still in the API: they are restarted, not replaced.
    rolled_out(&cluster)?;
    answers(&cluster, "node2")?;
    cluster.add_node(3)?;
    rolled_out(&cluster)?;
    answers(&cluster, "node3")?;
    let now = mac(&cluster)?;
    ensure!(
        now == fabric,
        "the MAC address changed from {fabric} to {now}"
    );

    for (host, program) in [("control-plane", "kube-scheduler"), ("node1", "containerd")] {
        for _ in 0..5 {
            // each waits until the one before has started again
            cluster.stop_component(host, program)?;
            cluster.resume_component(host, program)?;
        }
    }
    answers(&cluster, "node1")?;

    let owned = cluster.logs()?;
    cluster.stop()?;
    ensure!(!owned.exists(), "{} is still there", owned.display());
    let cgroup = format!("/sys/fs/cgroup/memory/portmapping-{name}");
    ensure!(!Path::new(&cgroup).exists(), "{cgroup} is still there");
    Ok(())
}

/// The MAC address of the control plane on the fabric.
fn mac(cluster: &Cluster) -> Result<String> {
    let output = cluster.exec(
        "control-plane",
        &["ip", "-json", "link", "show", "dev", "fabric"],
    )?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let mac = links[0]["address"].as_str();
    Ok(mac.context("fabric has no address")?.to_owned())
}

fn rolled_out(cluster: &Cluster) -> Result<()> {
    let status = ["rollout", "status", "daemonset/echo", "--timeout=90s"];
    cluster
        .kubectl_run(status)
        .context("the DaemonSet did not roll out")
        .map(drop)
}

/// Both families, from outside the cluster, with a few attempts: after a power cut the API server
/// still reports the old pods as Ready for a moment.
fn answers(cluster: &Cluster, node: &str) -> Result<()> {
    for address in cluster.addresses(node)? {
        let url = if address.contains(':') {
            format!("http://[{address}]:18080/")
        } else {
            format!("http://{address}:18080/")
        };
        let retry = ["--retry", "30", "--retry-delay", "1", "--retry-all-errors"];
        let fetch = [&["curl", "-sS", "--max-time", "2"], &retry[..], &[&url]].concat();
        let output = cluster.exec("client", &fetch)?;
        let answer = String::from_utf8_lossy(&output.stdout);
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            answer.starts_with("echo-"),
            "{url} answered {answer:?} {error}"
        );
    }
    Ok(())
}
