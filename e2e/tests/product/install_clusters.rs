//! Does an installation fit clusters that differ from the one of the other tests?

use anyhow::{Result, ensure};
use e2e::artifacts::go;
use e2e::{Cluster, install, paths};
use serde_json::{Value, json};

use crate::install_helm::helm;
use crate::support::pods::{entries, mapped_pod, on_node};
use crate::support::space::Space;
use crate::support::{config, get, kubectl_with};

const WORKLOADS: [&str; 2] = ["deployment/webhook", "daemonset/enforcer"];

/// `helm install` or `helm upgrade` of the chart into the namespace of kustomize.
pub(crate) fn chart(cluster: &Cluster, words: &[&str], values: &str) -> Result<()> {
    let chart = paths::manifests().join("chart");
    let chart = chart.to_string_lossy();
    let place = ["portmapping", &chart, "--namespace", install::NAMESPACE];
    helm(cluster, &[words, &place[..], &["--set", values]].concat())?;
    for workload in WORKLOADS {
        install::rolled_out(cluster, install::NAMESPACE, workload)?;
    }
    Ok(())
}

/// What the workloads should be. Not their generations: Helm's annotations are a new one of a Deployment.
fn specs(cluster: &Cluster) -> Result<Vec<Value>> {
    let spec = |workload: &&str| {
        let object = get(cluster, &["-n", install::NAMESPACE, workload])?;
        let spec = object["spec"].clone();
        ensure!(spec.is_object(), "{workload} has no spec: {object}");
        Ok(spec)
    };
    WORKLOADS.iter().map(spec).collect()
}

/// No pod of ours starts there: virtual nodes run no DaemonSet, and there is no image for other processors.
fn add_nodes_without_the_enforcer(cluster: &Cluster) -> Result<()> {
    for (name, arch, (label, value)) in [
        (
            "fargate-1",
            "amd64",
            ("eks.amazonaws.com/compute-type", "fargate"),
        ),
        ("virtual-1", "amd64", ("type", "virtual-kubelet")),
        ("mainframe-1", "s390x", ("type", "machine")),
    ] {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": {
                "kubernetes.io/os": "linux", "kubernetes.io/arch": arch, label: value,
            } },
        });
        let (made, reply) = kubectl_with(cluster, &["create", "-f", "-"], &node.to_string())?;
        ensure!(made, "{reply}");
    }
    Ok(())
}

#[test]
fn helm_takes_over_from_kustomize_and_moves_the_webhook_to_the_nodes_network() -> Result<()> {
    let mut cluster = Cluster::start(&config("clusters"))?;
    go::release_tools()?;
    add_nodes_without_the_enforcer(&cluster)?;
    install::install(&mut cluster)?;
    let cluster = cluster;
    Space::with(&cluster, "owned", |space| {
        space.create(&mapped_pod("kept"))?;
        let before = entries(&space.ready("kept")?)?;
        let wanted = specs(&cluster)?;
        chart(
            &cluster,
            &["install", "--take-ownership"],
            "failurePolicy=Fail",
        )?;
        let now = specs(&cluster)?;
        ensure!(
            now == wanted,
            "the new owner wants\n{now:?}\nnot\n{wanted:?}"
        );

        // two replicas on two nodes, then one on one node: a second pod could not bind the ports
        let hosted = "webhook.hostNetwork=true,webhook.port=10260,webhook.healthPort=10261";
        chart(&cluster, &["upgrade"], hosted)?;
        space.create(&mapped_pod("two"))?;
        space.ready("two")?;
        let node = &cluster.nodes()?[0];
        let one = format!(
            "{hosted},webhook.replicas=1,webhook.nodeSelector.kubernetes\\.io/hostname={node}"
        );
        chart(&cluster, &["upgrade"], &one)?;
        chart(
            &cluster,
            &["upgrade"],
            &format!("{one},webhook.podLabels.next=update"),
        )?;
        space.create(&on_node(mapped_pod("one"), node))?;
        space.ready("one")?;
        ensure!(
            entries(&space.pod("kept")?)? == before,
            "the host ports have changed"
        );
        Ok(())
    })?;
    cluster.stop()
}
