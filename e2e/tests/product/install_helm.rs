//! Does the chart install portmapping, wherever a user wants it, and remove it again?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::artifacts::go;
use e2e::{Cluster, Config, install, paths, process};
use serde_json::{Value, json};

use crate::install_test::names_every_fault;
use crate::support::outside::Way;
use crate::support::pods::{condition, entries, mapped_pod, on_node};
use crate::support::registry::Registry;
use crate::support::space::Space;
use crate::support::{ANNOTATION, config, eventually, get, kubectl_with};
use crate::uninstall::{ONE_PORT, as_before, released, settled, with_one_port};

pub(crate) const NAMESPACE: &str = "elsewhere";
const JOB: &str = "portmapping-uninstall";

/// helm for the cluster, with the words of a subcommand.
pub(crate) fn helm(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let mut helm = process::command(go::release_tools()?.join("helm"));
    helm.env("KUBECONFIG", cluster.kubeconfig()).args(words);
    process::run(&mut helm, Duration::from_mins(4))
}

/// `helm install` of the chart from the registry, which names its images by digest; fails as helm does.
fn helm_install(
    cluster: &Cluster,
    registry: &Registry,
    release: &str,
    namespace: &str,
) -> Result<String> {
    cluster.kubectl_run(["create", "namespace", namespace])?;
    let privileged = "pod-security.kubernetes.io/enforce=privileged";
    cluster.kubectl_run(["label", "namespace", namespace, privileged])?;
    registry.helm_install(cluster, release, namespace)
}

/// What the test of `GitOps` compares: the generation of the workloads, and what the pods publish.
fn picture(cluster: &Cluster, space: &Space<'_>) -> Result<Vec<Value>> {
    let mut seen = Vec::new();
    for workload in ["deployment/webhook", "daemonset/enforcer"] {
        let object = get(cluster, &["-n", NAMESPACE, workload])?;
        seen.push(object["metadata"]["generation"].clone());
    }
    for pod in space.get(&["pods"])?["items"]
        .as_array()
        .context("no list")?
    {
        seen.push(pod["metadata"]["annotations"].clone());
        seen.push(json!(condition(pod, ANNOTATION)));
    }
    Ok(seen)
}

/// The rules of the mapped ports of a node, each with its pod's uid.
fn rules(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let output = cluster.exec(node, &["iptables-save", "-t", "nat"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let ours = text.lines().filter(|line| line.contains("portmapping:"));
    let mut ours: Vec<_> = ours.map(str::to_owned).collect();
    ours.sort();
    Ok(ours)
}

/// Tools for `GitOps` that do not know Helm's hooks apply them like all other objects.
fn gitops_apply(cluster: &Cluster, registry: &Registry, space: &Space<'_>) -> Result<()> {
    let nodes = cluster.nodes()?;
    let before = picture(cluster, space)?;
    let all = |nodes: &[String]| -> Result<Vec<_>> {
        nodes.iter().map(|node| rules(cluster, node)).collect()
    };
    let rules_before = all(&nodes)?;
    ensure!(
        rules_before.iter().any(|rules| !rules.is_empty()),
        "no rules"
    );
    let chart = paths::manifests().join("chart");
    let chart = chart.to_string_lossy();
    let words = [
        "template",
        "any-name",
        &chart,
        "--namespace",
        NAMESPACE,
        "--kube-version",
        "1.36.0",
    ];
    let values = registry.values();
    let text = helm(cluster, &[&words[..], &["--set", values.as_str()]].concat())?;
    let start = Instant::now();
    // not client-side: that adds an annotation, which is a new generation of a Deployment
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "-n",
        NAMESPACE,
        "-f",
        "-",
    ];
    let (applied, reply) = kubectl_with(cluster, &apply, &text)?;
    ensure!(applied, "kubectl apply: {reply}");
    let complete = format!("job/{JOB}");
    wait_for_job(cluster, &complete)?;
    println!(
        "the clean-up job of a living installation: {:.1} s",
        start.elapsed().as_secs_f64()
    );
    wait_for_job(cluster, "job/portmapping-test")?;
    let log = cluster.kubectl_run(["-n", NAMESPACE, "logs", &complete])?;
    ensure!(log.contains("Nothing is removed"), "{log}");
    // the rules of the test's own pods go when their sandboxes do
    eventually("everything to be as before", || {
        let now = (picture(cluster, space)?, all(&nodes)?);
        ensure!(now.0 == before, "{:?}\n{before:?}", now.0);
        ensure!(now.1 == rules_before, "{:?}\n{rules_before:?}", now.1);
        Ok(())
    })
}

fn wait_for_job(cluster: &Cluster, job: &str) -> Result<()> {
    let complete = ["wait", "--for=condition=Complete", job, "--timeout=120s"];
    cluster.kubectl_run([&["-n", NAMESPACE], &complete[..]].concat())?;
    Ok(())
}

/// Makes what a `helm uninstall` that was interrupted leaves: its DaemonSet, whose pods are Ready.
fn interrupted_uninstall(cluster: &Cluster) -> Result<()> {
    let labels = json!({ "app.kubernetes.io/name": "portmapping", "app.kubernetes.io/component": "uninstall" });
    let container =
        json!({ "name": "enforcer", "image": "localhost/pause:1", "imagePullPolicy": "Never" });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": JOB, "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [container] } },
        },
    });
    let (made, reply) = kubectl_with(cluster, &["create", "-f", "-"], &set.to_string())?;
    ensure!(made, "{reply}");
    install::rolled_out(cluster, NAMESPACE, &format!("daemonset/{JOB}"))
}

/// `helm uninstall` while pods are mapped: no rule stays, and no pod claims a port.
fn helm_uninstall(cluster: &Cluster, space: &Space<'_>) -> Result<()> {
    interrupted_uninstall(cluster)?;
    helm(
        cluster,
        &["uninstall", "any-name", "--namespace", NAMESPACE],
    )?;
    for node in cluster.nodes()? {
        ensure!(rules(cluster, &node)?.is_empty(), "rules stay on {node}");
    }
    released(space, "first", "")?;
    released(space, "second", ONE_PORT)?;
    for kind in ["job", "daemonset", "serviceaccount", "role"] {
        let objects = get(cluster, &["-n", NAMESPACE, kind])?;
        let names = objects["items"].to_string();
        ensure!(!names.contains(JOB), "a {kind} of the clean-up stays");
    }
    Ok(())
}

#[test]
fn helm_installs_once_anywhere_and_uninstalls_without_a_trace() -> Result<()> {
    // no image of the product is on the nodes
    let cluster = Cluster::start(&Config {
        product: false,
        ..config("helm")
    })?;
    go::release_tools()?;
    let registry = Registry::start(&cluster)?;
    let nodes = cluster.nodes()?;
    let clean = eventually("the node's rules to settle", || settled(&cluster, &nodes))?;
    let start = Instant::now();
    helm_install(&cluster, &registry, "any-name", NAMESPACE)?;
    for workload in ["deployment/webhook", "daemonset/enforcer"] {
        install::rolled_out(&cluster, NAMESPACE, workload)?;
    }
    Space::with(&cluster, "mapped", |space| {
        space.create(&on_node(mapped_pod("first"), &nodes[0]))?;
        let pod = space.ready("first")?;
        for entry in entries(&pod)? {
            space.answers(&pod, &entry, Way::Http)?;
        }
        println!(
            "helm install to the first mapped pod that answers: {:.1} s",
            start.elapsed().as_secs_f64()
        );
        space.create(&with_one_port("second"))?;
        space.ready("second")?;

        let Err(other) = helm_install(&cluster, &registry, "second", "another") else {
            anyhow::bail!("a second installation was accepted");
        };
        let text = format!("{other:#}");
        ensure!(
            text.contains("exists and cannot be imported into the current release"),
            "the refusal of a second installation does not say why: {text}"
        );
        gitops_apply(&cluster, &registry, space)?;
        names_every_fault(&cluster)?;
        helm_uninstall(&cluster, space)
    })?;
    cluster.kubectl_run(["delete", "namespace", "mapped", "--ignore-not-found"])?;
    as_before(&cluster, &nodes, &clean)?;
    cluster.stop()
}
