//! Is a pod reachable as soon as it is Ready?

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config};
use serde_json::json;

use crate::support::outside::{at, tcp};
use crate::support::pods::{annotated, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, node_addresses, shared};

const PODS: usize = 100;
const LIMIT: Duration = Duration::from_mins(5);

/// A pod that has just become Ready, and the endpoint in its annotation.
struct Seen {
    name: String,
    endpoint: SocketAddr,
}

#[test]
fn a_client_that_connects_as_soon_as_a_pod_is_ready_succeeds() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "ready", |space| {
            let nodes = node_addresses(cluster)?;
            let (ready, seen) = mpsc::channel::<Seen>();
            let asker = at(cluster, "client", move || {
                let ask = |pod: Seen| {
                    tcp(pod.endpoint)
                        .with_context(|| format!("{} at {} was Ready", pod.name, pod.endpoint))
                        .and_then(|answer| {
                            ensure!(answer == pod.name, "{} answered {answer:?}", pod.name);
                            Ok(())
                        })
                };
                seen.iter().map(ask).collect::<Vec<Result<()>>>()
            })?;
            let template = pod(
                "unused",
                &["--tcp", "9040"],
                &json!([{ "containerPort": 9040 }]),
            );
            let mut template = annotated(template, "");
            // without a probe, Ready means that the container runs, not that its program listens
            template["spec"]["containers"][0]["readinessProbe"] =
                json!({ "tcpSocket": { "port": 9040 }, "periodSeconds": 1 });
            space.create(&json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "crowd" },
            "spec": {
                "replicas": PODS,
                "selector": { "matchLabels": { "app": "crowd" } },
                "template": {
                    "metadata": { "labels": { "app": "crowd" }, "annotations": template["metadata"]["annotations"] },
                    "spec": template["spec"],
                },
            },
        }))?;
            watch(cluster.kubeconfig(), "ready", &nodes, &ready)?;
            drop(ready);
            let outcomes = asker.join().ok().context("the asking thread panicked")??;
            let failed: Vec<String> = outcomes
                .iter()
                .filter_map(|o| o.as_ref().err())
                .map(|e| format!("{e:#}"))
                .collect();
            ensure!(outcomes.len() == PODS, "{} pods were asked", outcomes.len());
            footprint(cluster)?;
            ensure!(
                failed.is_empty(),
                "{} of {PODS} failed: {failed:?}",
                failed.len()
            );
            Ok(())
        })
    })
}

/// Most resident memory of one process with 50 mapped pods per node, in KiB.
const MEMORY: u64 = 20 * 1024;

/// The memory of webhook and enforcer while all these pods run.
fn footprint(cluster: &Cluster) -> Result<()> {
    if !cluster.is_ours() {
        return Ok(());
    }
    for program in ["/webhook", "/enforcer"] {
        for (command, kib) in cluster.resident_memory(program)? {
            println!("{command}: {kib} KiB resident with {PODS} mapped pods on two nodes");
            ensure!(kib < MEMORY, "{command} takes {kib} KiB");
        }
    }
    Ok(())
}

/// Sends every pod at the first event in which it is Ready.
fn watch(
    kubeconfig: &std::path::Path,
    namespace: &str,
    nodes: &BTreeMap<String, String>,
    ready: &mpsc::Sender<Seen>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let api: Api<Pod> = Api::namespaced(Client::try_from(config)?, namespace);
        let events = watcher(api, watcher::Config::default())
            .default_backoff()
            .applied_objects();
        pin_mut!(events);
        let mut passed = std::collections::BTreeSet::new();
        let end = Instant::now() + LIMIT;
        while passed.len() < PODS {
            let left = end.saturating_duration_since(Instant::now());
            let event = tokio::time::timeout(left, events.next()).await;
            let event =
                event.with_context(|| format!("{} of {PODS} pods were Ready", passed.len()))?;
            let Some(Ok(pod)) = event else { continue };
            let Some(seen) = just_ready(&pod, nodes)? else {
                continue;
            };
            if passed.insert(seen.name.clone()) {
                ready.send(seen)?;
            }
        }
        Ok(())
    })
}

fn just_ready(pod: &Pod, nodes: &BTreeMap<String, String>) -> Result<Option<Seen>> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let is_ready =
        |c: &k8s_openapi::api::core::v1::PodCondition| c.type_ == "Ready" && c.status == "True";
    if !conditions.is_some_and(|all| all.iter().any(is_ready)) {
        return Ok(None);
    }
    let name = pod.metadata.name.clone().unwrap_or_default();
    let value = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(ANNOTATION));
    let value = value.with_context(|| format!("{name} is Ready without an annotation"))?;
    let entries: Vec<crate::support::pods::MappedPort> = serde_json::from_str(value)
        .with_context(|| format!("{name} is Ready and its annotation is {value:?}"))?;
    let node = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_ref())
        .context("no node")?;
    let address = nodes
        .get(node)
        .with_context(|| format!("no address of {node}"))?;
    let entry = entries
        .first()
        .with_context(|| format!("{name} is Ready and maps nothing"))?;
    Ok(Some(Seen {
        name,
        endpoint: SocketAddr::new(address.parse()?, entry.host_port),
    }))
}
