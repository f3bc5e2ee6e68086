//! Does uninstalling leave a node as it was before?

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install, paths};
use serde_json::{Value, json};

use crate::support::pods::{annotated, annotation, condition, entries, mapped_pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, config, eventually};

/// Commands whose output the product could change.
const QUESTIONS: [&[&str]; 8] = [
    &["iptables-save"],
    &["ip6tables-save"],
    &["iptables-legacy-save"],
    &["ip6tables-legacy-save"],
    &["nft", "list", "tables"],
    &["ss", "-Hlntu"],
    &[
        "sysctl",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.conf.all.route_localnet",
        "net.ipv4.ip_forward",
    ],
    &["ip", "-br", "rule"],
];

#[test]
fn uninstalling_leaves_every_node_as_it_was() -> Result<()> {
    let mut cluster = Cluster::start(&config("uninstall"))?;
    let nodes = cluster.nodes()?;
    let before = eventually("the node's rules to settle", || settled(&cluster, &nodes))?;
    install::install(&mut cluster)?;
    Space::with(&cluster, "mapped", |space| {
        for index in 0..3 {
            space.create(&mapped_pod(&format!("pod-{index}")))?;
        }
        space.create(&with_one_port("pod-3"))?;
        for index in 0..4 {
            entries(&space.ready(&format!("pod-{index}"))?)?;
        }
        ensure!(
            read_state(&cluster, &nodes)? != before,
            "the commands do not show the product"
        );
        uninstall(&cluster)?;
        for index in 0..3 {
            released(space, &format!("pod-{index}"), "")?;
        }
        released(space, "pod-3", ONE_PORT)
    })?;
    cluster.kubectl_run(["delete", "namespace", "mapped", "--ignore-not-found"])?;
    as_before(&cluster, &nodes, &before)?;
    cluster.stop()
}

/// What a user of kustomize does.
fn uninstall(cluster: &Cluster) -> Result<()> {
    let manifests = paths::manifests();
    let overlay = manifests.join("overlays/uninstall");
    cluster.kubectl_run(["delete", "mutatingwebhookconfiguration", "portmapping"])?;
    cluster.kubectl_run(["apply".as_ref(), "-k".as_ref(), overlay.as_os_str()])?;
    let rollout = [
        "-n",
        install::NAMESPACE,
        "rollout",
        "status",
        "ds/enforcer",
        "--timeout=90s",
    ];
    cluster.kubectl_run(rollout)?;
    let base = manifests.join("base");
    cluster.kubectl_run([
        "delete".as_ref(),
        "--ignore-not-found".as_ref(),
        "-k".as_ref(),
        base.as_os_str(),
    ])?;
    Ok(())
}

/// What a pod of [`with_one_port`] asks for.
pub(crate) const ONE_PORT: &str = r#"[{"containerPort":9040,"protocol":"TCP"}]"#;

/// A pod that asks for one of its two ports.
pub(crate) fn with_one_port(name: &str) -> Value {
    let mut pod = annotated(mapped_pod(name), ONE_PORT);
    pod["spec"]["containers"][0]["ports"] =
        json!([{ "containerPort": 9040 }, { "containerPort": 9041 }]);
    pod
}

/// Fails unless the pod knows that its ports are gone, and asks again for what it asked for.
pub(crate) fn released(space: &Space<'_>, pod: &str, asked: &str) -> Result<()> {
    let pod = space.pod(pod)?;
    let now = condition(&pod, ANNOTATION).context("no condition")?;
    ensure!(
        now["status"] == "False" && now["reason"] == "Released",
        "{now}"
    );
    let annotations = &pod["metadata"]["annotations"];
    ensure!(annotation(&pod) == Some(asked), "{annotations}");
    Ok(())
}

/// What the commands print, by node and command.
pub(crate) type Answers = BTreeMap<(String, String), String>;

/// Waits until the nodes print the same as before.
pub(crate) fn as_before(cluster: &Cluster, nodes: &[String], before: &Answers) -> Result<()> {
    eventually("the nodes to be as before", || {
        let after = read_state(cluster, nodes)?;
        for (question, answer) in before {
            let now = after.get(question).context("a question less")?;
            ensure!(
                now == answer,
                "{question:?} printed\n{answer}\nand now prints\n{now}"
            );
        }
        Ok(())
    })
}

/// Reads a node twice: equal answers mean that it does not change any more.
pub(crate) fn settled(cluster: &Cluster, nodes: &[String]) -> Result<Answers> {
    let first = read_state(cluster, nodes)?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let second = read_state(cluster, nodes)?;
    ensure!(first == second, "still changing");
    // on a busy machine kube-proxy writes its first rules long after a node takes pods
    for ((node, question), answer) in &second {
        let rules = question == "iptables-save" || question == "ip6tables-save";
        ensure!(
            !rules || answer.contains("-j KUBE-SERVICES"),
            "kube-proxy on {node} has not written {question} yet"
        );
    }
    Ok(second)
}

fn read_state(cluster: &Cluster, nodes: &[String]) -> Result<Answers> {
    let mut answers = BTreeMap::new();
    for node in nodes {
        for question in QUESTIONS {
            let output = cluster.exec(node, question)?;
            // the answers of a program that cannot answer are all equal
            ensure!(
                output.status.success(),
                "{question:?} on {node}: {output:?}"
            );
            let text = String::from_utf8_lossy(&output.stdout);
            let mut lines: Vec<String> = text.lines().filter_map(stable).collect();
            if question[0] == "ss" {
                lines.sort();
            }
            answers.insert((node.clone(), question.join(" ")), lines.join("\n"));
        }
    }
    Ok(answers)
}

/// A line without what changes by itself: comments with the time, counters.
fn stable(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    Some(match line.split_once(" [") {
        Some((chain, _)) if line.starts_with(':') => chain.to_owned(),
        _ => line.to_owned(),
    })
}
