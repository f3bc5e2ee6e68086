//! What if the policies name another account than the enforcer's? It is not Ready, and says why.

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install, paths};
use serde_json::{Value, json};

use crate::support::parts::roll;
use crate::support::pods::is_true;
use crate::support::{alone, eventually, get};

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

/// A new enforcer is not Ready, and its log has one line that names the policy and the account.
fn refusal_is_logged(cluster: &Cluster) -> Result<()> {
    let label = "app.kubernetes.io/component=enforcer";
    let pods = get(cluster, &["-n", install::NAMESPACE, "pods", "-l", label])?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    let waiting: Vec<_> = pods.iter().filter(|pod| !is_true(pod, "Ready")).collect();
    ensure!(!waiting.is_empty(), "every enforcer is Ready");
    for pod in waiting {
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
    }
    Ok(())
}

#[test]
fn an_account_that_no_policy_names_is_logged_and_the_enforcer_is_not_ready() -> Result<()> {
    alone(|cluster| {
        name_another_account(cluster)?;
        let restart = ["rollout", "restart", "daemonset/enforcer"];
        cluster.kubectl_run([&["-n", install::NAMESPACE], &restart[..]].concat())?;
        let logged = eventually("a new enforcer to say that it is refused", || {
            refusal_is_logged(cluster)
        });
        restore(cluster)?;
        logged?;
        // it asks again, and is Ready without a restart
        install::rolled_out(cluster, install::NAMESPACE, "daemonset/enforcer")?;
        roll(cluster)
    })
}
