//! Does the test of an installation pass where all is well, and does it name what is wrong?

use anyhow::{Result, ensure};
use e2e::{Cluster, install};
use serde_json::{Value, json};

use crate::install_helm::{NAMESPACE, helm};
use crate::support::{eventually, get};

/// Runs `helm test`: whether it passed, and what the job printed.
fn tested(cluster: &Cluster) -> (bool, String) {
    let words = [
        "test",
        "any-name",
        "--namespace",
        NAMESPACE,
        "--timeout",
        "4m",
    ];
    let Err(error) = helm(cluster, &words) else {
        return (true, String::new());
    };
    let log = kubectl(cluster, &["logs", "job/portmapping-test"]);
    (false, format!("{}\n{error:#}", log.unwrap_or_default()))
}

/// Runs `helm test`, which must print each text.
fn names(cluster: &Cluster, faults: &[&str]) -> Result<()> {
    let (passed, text) = tested(cluster);
    ensure!(!passed, "the test passed in spite of {faults:?}");
    for fault in faults {
        ensure!(text.contains(fault), "{fault:?} is not named:\n{text}");
    }
    Ok(())
}

fn kubectl(cluster: &Cluster, words: &[&str]) -> Result<String> {
    cluster.kubectl_run([&["-n", NAMESPACE], words].concat())
}

fn patch(cluster: &Cluster, what: &[&str], changes: &Value) -> Result<()> {
    let changes = changes.to_string();
    kubectl(cluster, &[&["patch"], what, &["-p", &changes]].concat())?;
    Ok(())
}

/// Adds a rule about packets that were led to a pod of a node, or takes it out.
fn rule(cluster: &Cluster, node: &str, how: &str, target: &[&str]) -> Result<()> {
    let led = ["-p", "tcp", "-m", "conntrack", "--ctstate", "DNAT"];
    let range = ["--ctorigdstport", "20000:29999", "-j"];
    let words = ["iptables", "-w", how, "FORWARD"];
    let output = cluster.exec(node, &[&words[..], &led, &range, target].concat())?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// Provokes the faults on an installation of the chart, and leaves it as it was.
pub(crate) fn names_every_fault(cluster: &Cluster) -> Result<()> {
    let (passed, text) = tested(cluster);
    ensure!(passed, "the test fails where nothing is wrong:\n{text}");
    paths(cluster)?;
    workloads(cluster)?;
    control_plane(cluster)?;
    let (passed, text) = tested(cluster);
    ensure!(
        passed,
        "the test fails after everything was repaired:\n{text}"
    );
    let left = get(
        cluster,
        &[
            "-n",
            NAMESPACE,
            "pods",
            "-l",
            "app.kubernetes.io/component=test-pod",
        ],
    )?;
    ensure!(left["items"] == json!([]), "pods of the test stay: {left}");
    Ok(())
}

/// A firewall that drops, and a node that leads packets nowhere.
fn paths(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?;
    let (drop, reject) = (["DROP"], ["REJECT", "--reject-with", "tcp-reset"]);
    rule(cluster, &nodes[0], "-I", &drop)?;
    rule(cluster, &nodes[1], "-I", &reject)?;
    let silent = format!("on node {}: no answer within", nodes[0]);
    let refused = format!("on node {}: refused: packets arrive", nodes[1]);
    names(
        cluster,
        &[
            &silent,
            &refused,
            "a pod cannot reach",
            "node1 cannot reach",
        ],
    )?;
    rule(cluster, &nodes[0], "-D", &drop)?;
    rule(cluster, &nodes[1], "-D", &reject)
}

/// A node without an enforcer, and a namespace that forbids it.
fn workloads(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.nodes()?;
    let set = ["daemonset", "enforcer"];
    let only = |node: Option<&str>| {
        json!({ "spec": {
            // the pod on the other node goes, and none is replaced
            "updateStrategy": { "type": "OnDelete", "rollingUpdate": null },
            "template": { "spec": { "nodeSelector": { "kubernetes.io/hostname": node } } },
        } })
    };
    let pods = |count: usize| -> Result<()> {
        let which = [
            "-n",
            NAMESPACE,
            "pods",
            "-l",
            "app.kubernetes.io/component=enforcer",
        ];
        let pods = get(cluster, &which)?;
        let found = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(found == count, "{found} enforcers");
        Ok(())
    };
    patch(cluster, &set, &only(Some(&nodes[0])))?;
    eventually("the other node to lose its enforcer", || {
        pods(nodes.len() - 1)
    })?;
    names(
        cluster,
        &[&format!("no enforcer runs on node {}", nodes[1])],
    )?;

    let level = |level: &str| {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        cluster.kubectl_run(["label", "--overwrite", "namespace", NAMESPACE, &label])
    };
    level("baseline")?;
    patch(cluster, &set, &only(None))?;
    eventually("the pod to be refused", || {
        let failed = ["events", "--field-selector", "reason=FailedCreate"];
        let events = get(cluster, &[&["-n", NAMESPACE], &failed[..]].concat())?;
        ensure!(events["items"] != json!([]), "no event");
        Ok(())
    })?;
    names(
        cluster,
        &[
            "pods of DaemonSet enforcer are not created",
            "violates PodSecurity",
        ],
    )?;
    level("privileged")?;
    eventually("the enforcer to come back", || pods(nodes.len()))
}

/// What the API server needs: the webhook, its caBundle, the policies with the right account.
fn control_plane(cluster: &Cluster) -> Result<()> {
    kubectl(cluster, &["scale", "deployment/webhook", "--replicas=0"])?;
    eventually("the webhook to be gone", || {
        let which = [
            "-n",
            NAMESPACE,
            "pods",
            "-l",
            "app.kubernetes.io/component=webhook",
        ];
        ensure!(
            get(cluster, &which)?["items"] == json!([]),
            "a replica runs"
        );
        Ok(())
    })?;
    names(cluster, &["the API server cannot reach the webhook"])?;

    let json_patch = |what: &[&str], changes: Value| {
        let changes = changes.to_string();
        kubectl(
            cluster,
            &[&["patch"], what, &["--type=json", "-p", &changes]].concat(),
        )
    };
    let empty =
        json!([{ "op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "" }]);
    json_patch(&["mutatingwebhookconfiguration", "portmapping"], empty)?;
    cluster.kubectl_run([
        "delete",
        "validatingadmissionpolicybinding",
        "portmapping-users",
    ])?;
    for account in ["enforcer", "webhook"] {
        let path = "/spec/matchConditions/0/expression";
        let other = format!(
            "request.userInfo.username == 'system:serviceaccount:portmapping-system:{account}'"
        );
        let other = json!([{ "op": "replace", "path": path, "value": other }]);
        let policy = format!("portmapping-{account}");
        json_patch(&["validatingadmissionpolicy", &policy], other)?;
    }
    names(
        cluster,
        &[
            "the caBundle of the registration portmapping is empty",
            "the admission policy portmapping-users or its binding does not exist",
            "the admission policy portmapping-enforcer does not name the account system:serviceaccount:elsewhere:enforcer",
            "the admission policy portmapping-webhook does not name the account system:serviceaccount:elsewhere:webhook",
        ],
    )?;
    let chart = e2e::paths::manifests().join("chart");
    let chart = chart.to_string_lossy();
    helm(
        cluster,
        &[
            "upgrade",
            "any-name",
            &chart,
            "--reuse-values",
            "--namespace",
            NAMESPACE,
        ],
    )?;
    for workload in ["deployment/webhook", "daemonset/enforcer"] {
        install::rolled_out(cluster, NAMESPACE, workload)?;
    }
    Ok(())
}
