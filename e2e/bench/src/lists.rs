//! `e2e-bench lists`: what it costs the API server when the enforcers of 200 nodes list their pods at
//! once, as they do after it was down. They list as the enforcer does, each over a connection of its
//! own: streamed (Kubernetes 1.36), and from the cache (1.33, which does not stream lists by default).

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::Api;
use kube::config::{Config as ClientConfig, KubeConfigOptions, Kubeconfig};
use portmapping_runtime::list_watch::{Event, ListWatch};
use serde_json::json;

use super::Options;
use super::report::{Report, Row};
use super::stats::percentile;
use super::webhook::cpu_time;
use e2e::api::Api as Admin;
use e2e::cluster::Cluster;
use e2e::progress::say;
use e2e::wait::{Probe, until};
use e2e::{Config, Minor};

const NODES: u32 = 200;
const PODS_PER_NODE: u32 = 30;
/// Lists of all nodes, one after the other; the median counts.
const ROUNDS: u16 = 5;
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(100);
/// The API server has finished what it was doing.
const REST: Duration = Duration::from_secs(5);
const SPACE: &str = "lists";

pub(super) fn run(options: &Options) -> Result<Report> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut report = Report::default();
    for (minor, how) in [(Minor::V1_36, "streamed"), (Minor::V1_33, "from the cache")] {
        let cluster = Cluster::start(&Config {
            name: format!("lists-{}", std::process::id()),
            kubernetes: minor,
            // no kubelet writes at the same time
            nodes: 0,
            product: false,
            ..Config::default()
        })?;
        furnish(&cluster)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let server = cluster.component("control-plane", "kube-apiserver")?;
        let server = u32::try_from(server.as_raw()).context("pid out of range")?;
        let (mut cpu, mut wall) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            std::thread::sleep(REST);
            let (start, before) = (Instant::now(), cpu_time(server)?);
            runtime
                .block_on(async { tokio::time::timeout(LIMIT, list_all(&cluster)).await })
                .context("the API server did not list all pods in time")??;
            wall.push(start.elapsed().as_secs_f64());
            cpu.push(cpu_time(server)?.saturating_sub(before).as_secs_f64());
        }
        let (cpu, wall) = (percentile(&cpu, 50), percentile(&wall, 50));
        let what = format!("{NODES} nodes of {PODS_PER_NODE} pods list them, {how} ({minor})");
        let each = cpu * 1_000.0 / f64::from(NODES);
        report.push(Row::new(format!("{what}: CPU of the API server"), "s", cpu));
        report.push(Row::new(
            format!("{what}: the same for each node"),
            "ms",
            each,
        ));
        report.push(Row::new(format!("{what}: until all have them"), "s", wall));
        cluster.stop()?;
    }
    Ok(report)
}

/// Node objects, and pods that are bound to them.
fn furnish(cluster: &Cluster) -> Result<()> {
    let admin = Admin::new(cluster.kubeconfig())?;
    cluster.kubectl_run(["create", "namespace", SPACE])?;
    let account = format!("/api/v1/namespaces/{SPACE}/serviceaccounts/default");
    until("the default service account", LIMIT, POLL, || {
        Ok(match admin.get(&account) {
            Ok(_) => Probe::Done(()),
            Err(error) => Probe::Missing(format!("{error:#}")),
        })
    })?;
    // it would report that the nodes are not ready
    cluster.stop_component("control-plane", "kube-controller-manager")?;
    say(format_args!(
        "{} pods on {NODES} nodes",
        NODES * PODS_PER_NODE
    ));
    for node in 0..NODES {
        let node = json!({ "metadata": { "name": name(node) } });
        admin.create("/api/v1/nodes", &node)?;
    }
    let path = format!("/api/v1/namespaces/{SPACE}/pods");
    let note = r#"[{"hostPort":23817,"containerPort":9040,"protocol":"TCP","podName":"p","podIP":"10.244.1.7"}]"#;
    for node in 0..NODES {
        for pod in 0..PODS_PER_NODE {
            let container = json!({
                "name": "c", "image": "registry.example/team/program:1.2.3", "ports": [{ "containerPort": 9040 }],
                "env": [{ "name": "A", "value": "b" }], "resources": { "requests": { "cpu": "10m", "memory": "64Mi" } },
                "readinessProbe": { "httpGet": { "path": "/", "port": 9040 } },
            });
            admin.create(&path, &json!({
                "metadata": { "name": format!("{}-{pod}", name(node)), "annotations": { "note": note } },
                "spec": { "nodeName": name(node), "containers": [container] },
            }))?;
        }
    }
    Ok(())
}

fn name(node: u32) -> String {
    format!("fake-{node}")
}

async fn list_all(cluster: &Cluster) -> Result<()> {
    let config = Kubeconfig::read_from(cluster.kubeconfig())?;
    let config =
        ClientConfig::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    let lists = (0..NODES).map(|node| {
        let client = Client::try_from(config.clone());
        async move { list(client?, node).await }
    });
    future::try_join_all(lists).await.map(drop)
}

/// Lists the pods of a node.
async fn list(client: Client, node: u32) -> Result<()> {
    let bound = format!("spec.nodeName={}", name(node));
    let mut events = ListWatch::<Pod>::new(client.clone(), Api::all(client), &bound, "pods");
    let mut pods = 0;
    loop {
        match events.next().await {
            Event::Listed(_) => pods += 1,
            Event::ListComplete => break,
            _ => {}
        }
    }
    anyhow::ensure!(pods == PODS_PER_NODE, "{pods} pods on a node");
    Ok(())
}
