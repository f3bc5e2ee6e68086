//! Who may not write what? Users may write no results, enforcers nothing on other nodes.

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install};
use serde_json::{Value, json};

use crate::support::caller::{Caller, delete_pod, patch_pod};
use crate::support::pods::{annotation, entries, mapped_pod, on_node};
use crate::support::space::Space;
use crate::support::{ANNOTATION, MARK, enforcer, node_addresses, shared};

const FORGED: &str = r#"[{"hostPort":22,"containerPort":9040,"protocol":"TCP","podName":"x","podIP":"10.99.99.99"}]"#;

/// Merge patches that must be refused even for a user with every right on pods.
fn forgeries() -> Vec<(&'static str, Value)> {
    let annotations = |all: Value| json!({ "metadata": { "annotations": all } });
    let condition = json!([{ "type": ANNOTATION, "status": "True", "message": "forged" }]);
    vec![
        ("", annotations(json!({ ANNOTATION: FORGED }))),
        (
            "",
            annotations(json!({ ANNOTATION: FORGED.replace("hostPort", r"\u0068ostPort") })),
        ),
        (
            "",
            annotations(json!({ ANNOTATION: FORGED.replace("hostPort", "HOSTPORT") })),
        ),
        (
            "",
            annotations(json!({ MARK: r#"[{"containerPort":22,"protocol":"TCP"}]"# })),
        ),
        (
            "",
            annotations(json!({ "host-port.tkestack.io/web": "22" })),
        ),
        ("status", annotations(json!({ ANNOTATION: FORGED }))),
        ("status", json!({ "status": { "conditions": condition } })),
    ]
}

fn patch(
    space: &Space<'_>,
    caller: &Caller,
    pod: &str,
    subresource: &str,
    body: &Value,
) -> Result<Result<(), String>> {
    patch_pod(space.cluster, caller, (&space.name, pod, subresource), body)
}

#[test]
fn a_user_with_every_right_on_pods_cannot_write_a_result() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "refuse-user", |space| {
            let rights = ["--verb=*", "--resource=pods,pods/status"];
            space.kubectl(&[&["create", "role", "pods"], rights.as_slice()].concat())?;
            space.kubectl(&[
                "create",
                "rolebinding",
                "pods",
                "--role=pods",
                "--user=mallory",
            ])?;
            space.create(&mapped_pod("target"))?;
            let before = space.ready("target")?;
            for who in [Caller::User("mallory"), Caller::Admin] {
                for (subresource, body) in forgeries() {
                    let refusal = patch(space, &who, "target", subresource, &body)?.err();
                    let reply = refusal.with_context(|| {
                        format!("{who:?} wrote {body} through pods/{subresource}")
                    })?;
                    ensure!(
                        reply.contains("denied request"),
                        "refused for another reason: {reply}"
                    );
                }
                let label = json!({ "metadata": { "labels": { "team": "a" }, "annotations": { "note": "b" } } });
                let honest = patch(space, &who, "target", "", &label)?;
                ensure!(honest.is_ok(), "an honest patch was refused: {honest:?}");
            }
            let after = space.pod("target")?;
            ensure!(
                annotation(&after) == annotation(&before),
                "{:?}",
                annotation(&after)
            );
            Ok(())
        })
    })
}

/// A token as the enforcer of a node has it: bound to its pod, so it carries the node's name.
fn token(cluster: &Cluster, node: &str) -> Result<String> {
    let pod = enforcer(cluster, node)?;
    let pod = pod["metadata"]["name"].as_str().context("no name")?;
    let name = format!("--bound-object-name={pod}");
    let create = ["-n", install::NAMESPACE, "create", "token", "enforcer"];
    let token = cluster.kubectl_run([&create, &["--bound-object-kind=Pod", &name][..]].concat())?;
    Ok(token.trim().to_owned())
}

#[test]
fn an_enforcer_writes_its_own_nodes_results_and_nothing_else() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "refuse-enforcer", |space| {
            let nodes = node_addresses(cluster)?;
            let mut names = nodes.keys();
            let (own, other) = (
                names.next().context("no node")?,
                names.next().context("one node")?,
            );
            space.create(&on_node(mapped_pod("own"), own))?;
            space.create(&on_node(mapped_pod("other"), other))?;
            let (mine, _) = (space.ready("own")?, space.ready("other")?);
            let who = Caller::Token(token(cluster, own)?);
            let result = json!({ "metadata": { "annotations": { ANNOTATION: annotation(&mine) } },
            "status": { "conditions": [{ "type": ANNOTATION, "status": "True", "message": "m" }] } });
            let honest = patch(space, &who, "own", "status", &result)?;
            ensure!(
                honest.is_ok(),
                "the enforcer's own write was refused: {honest:?}"
            );
            let foreign = [
                ("other", "status", result.clone()),
                ("own", "", result.clone()),
                (
                    "own",
                    "status",
                    json!({ "metadata": { "labels": { "a": "b" } } }),
                ),
                (
                    "own",
                    "status",
                    json!({ "metadata": { "annotations": { "a": "b" } } }),
                ),
                (
                    "own",
                    "status",
                    json!({ "metadata": { "finalizers": ["a.b/c"] } }),
                ),
                ("own", "status", json!({ "status": { "phase": "Failed" } })),
                (
                    "own",
                    "status",
                    json!({ "status": { "podIP": "10.99.99.99" } }),
                ),
                (
                    "own",
                    "status",
                    json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }),
                ),
            ];
            for (pod, subresource, body) in foreign {
                let refusal = patch(space, &who, pod, subresource, &body)?.err();
                let reply = refusal.with_context(|| {
                    format!(
                        "the enforcer of {own} wrote {body} to {pod} through pods/{subresource}"
                    )
                })?;
                ensure!(
                    reply.contains("forbidden"),
                    "refused for another reason: {reply}"
                );
            }
            let deleted = delete_pod(cluster, &who, (&space.name, "own"))?;
            ensure!(deleted.is_err(), "an enforcer deleted a pod");
            // a token that is bound to no pod carries no node
            let unbound = ["-n", "portmapping-system", "create", "token", "enforcer"];
            let unbound = Caller::Token(cluster.kubectl_run(unbound)?.trim().to_owned());
            let reply = patch(space, &unbound, "own", "status", &result)?
                .err()
                .unwrap_or_default();
            ensure!(reply.contains("may not write a pod of node"), "{reply:?}");
            ensure!(
                entries(&space.pod("own")?)? == entries(&mine)?,
                "the mapping changed"
            );
            Ok(())
        })
    })
}

#[test]
fn a_namespace_that_forbids_host_ports_forbids_random_ones() -> Result<()> {
    shared(|cluster| {
        let level = "pod-security.kubernetes.io/enforce=baseline";
        Space::with_labels(cluster, "refuse-baseline", &[level], |space| {
            let (fine, reply) = space.try_create(&mapped_pod("web"), &[])?;
            ensure!(
                !fine && reply.contains("tkestack.io/portmapping: allowed"),
                "{reply}"
            );
            space.cluster.kubectl_run([
                "label",
                "namespace",
                &space.name,
                "tkestack.io/portmapping=allowed",
            ])?;
            crate::support::eventually("the label to permit", || space.create(&mapped_pod("web")))?;
            space.ready("web").map(drop)
        })
    })
}
