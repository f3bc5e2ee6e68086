//! What if the policies name another account than the enforcer's? It is not Ready, says why, and leaves the node
//! to the earlier enforcer.

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install, paths};
use serde_json::{Value, json};

use crate::support::outside::{Way, is_refused};
use crate::support::parts::roll;
use crate::support::pods::{entries, is_true, mapped_pod, on_node};
use crate::support::space::Space;
use crate::support::{alone, eventually, get, kubectl_with, node_addresses};

const POLICY: [&str; 2] = ["validatingadmissionpolicy", "portmapping-enforcer"];

/// Makes the policy name an account of another namespace.
fn name_another_account(cluster: &Cluster) -> Result<()> {
    let policy = get(cluster, &POLICY)?;
    let path = "/spec/matchConditions/0/expression";
    let condition = policy.pointer(path).and_then(Value::as_str);
    let condition = condition.context("no match condition")?;
    let account = "system:serviceaccount:portmapping-system:enforcer";
    ensure!(condition.contains(account), "{condition}");
    let other = condition.replace(account, "system:serviceaccount:elsewhere:enforcer");
    let change = json!([{ "op": "replace", "path": path, "value": other }]).to_string();
    cluster.kubectl_run([&["patch"], &POLICY[..], &["--type=json", "-p", &change]].concat())?;
    Ok(())
}

fn restore(cluster: &Cluster) -> Result<()> {
    let file = paths::manifests().join("base/policy-enforcer.yaml");
    cluster.kubectl_run(["apply", &format!("--filename={}", file.display())])?;
    Ok(())
}

/// A new enforcer is not Ready, its log has one line that names the policy and the account, and it does not
/// take the node over. Returns its node.
fn refusal_is_logged(cluster: &Cluster) -> Result<String> {
    let label = "app.kubernetes.io/component=enforcer";
    let pods = get(cluster, &["-n", install::NAMESPACE, "pods", "-l", label])?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    let mut waiting = pods.iter().filter(|pod| !is_true(pod, "Ready"));
    // the update stops at the first one
    let pod = waiting.next().context("every enforcer is Ready")?;
    ensure!(waiting.next().is_none(), "an earlier one is not Ready");
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let logs = ["-n", install::NAMESPACE, "logs", name, "-c", "enforcer"];
    let log = cluster.kubectl_run(logs)?;
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("may not publish results"))
        .collect();
    ensure!(lines.len() == 1, "{} lines: {log}", lines.len());
    for part in [
        "system:serviceaccount:portmapping-system:enforcer",
        "portmapping-enforcer",
    ] {
        ensure!(lines[0].contains(part), "{part} is missing: {}", lines[0]);
    }
    ensure!(lines[0].len() < 1_500, "a long line: {}", lines[0]);
    ensure!(!log.contains("has taken the node over"), "{log}");

    let call = ["-n", install::NAMESPACE, "exec", name, "-c", "enforcer"];
    let health = ["--", "/enforcer", "health", "--ready"];
    let (ready, reply) = kubectl_with(cluster, &[&call[..], &health].concat(), "")?;
    ensure!(!ready, "it says that it is ready: {reply}");
    for part in [
        "another enforcer is on duty on this node",
        "may not publish results",
    ] {
        ensure!(reply.contains(part), "{part:?} is missing: {reply}");
    }
    let node = pod["spec"]["nodeName"].as_str().context("no node")?;
    Ok(node.to_owned())
}

/// The rules of a new pod come and those of a deleted one go. No result can be published at that time.
fn the_earlier_one_acts(space: &Space<'_>, node: &str) -> Result<()> {
    let cluster = space.cluster;
    let goes = space.ready(&format!("goes-{node}"))?;
    let endpoint = space.endpoint(&goes, &entries(&goes)?[0])?;
    space.create(&on_node(mapped_pod("comes"), node))?;
    let comes = space.pod("comes")?;
    let uid = comes["metadata"]["uid"].as_str().context("no uid")?;
    if cluster.is_ours() {
        eventually("the rules of a new pod", || {
            let saved = cluster.exec(node, &["iptables-save", "-t", "nat"])?;
            let text = String::from_utf8_lossy(&saved.stdout);
            ensure!(text.contains(uid), "no rule names {uid}");
            Ok(())
        })?;
    }
    space.kubectl(&["delete", "pod", &format!("goes-{node}")])?;
    eventually("the port of the deleted pod to be refused", || {
        ensure!(is_refused(cluster, endpoint)?, "{endpoint} answers");
        Ok(())
    })
}

#[test]
fn an_account_that_the_policies_do_not_name_is_logged_and_the_earlier_enforcer_acts() -> Result<()>
{
    alone(|cluster| {
        Space::with(cluster, "policy-account", |space| {
            let nodes: Vec<_> = node_addresses(cluster)?.into_keys().collect();
            for node in &nodes {
                space.create(&on_node(mapped_pod(&format!("goes-{node}")), node))?;
            }
            for node in &nodes {
                space.ready(&format!("goes-{node}"))?;
            }
            name_another_account(cluster)?;
            let outcome = refused(space);
            restore(cluster)?;
            outcome?;
            // it asks again, and is Ready without a restart
            install::rolled_out(cluster, install::NAMESPACE, "daemonset/enforcer")?;
            let comes = space.ready("comes")?;
            space.answers(&comes, &entries(&comes)?[0], Way::Http)?;
            roll(cluster)
        })
    })
}

/// Starts a new enforcer, which is refused; the earlier one of the node acts, and the new one still waits after
/// that.
fn refused(space: &Space<'_>) -> Result<()> {
    let cluster = space.cluster;
    let restart = ["rollout", "restart", "daemonset/enforcer"];
    cluster.kubectl_run([&["-n", install::NAMESPACE], &restart[..]].concat())?;
    let node = eventually("a new enforcer to say that it is refused", || {
        refusal_is_logged(cluster)
    })?;
    the_earlier_one_acts(space, &node)?;
    eventually("the new enforcer to wait as before", || {
        ensure!(
            refusal_is_logged(cluster)? == node,
            "not on {node} any more"
        );
        Ok(())
    })
}
