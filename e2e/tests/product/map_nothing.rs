//! Which pods stay as they are? Those that declare no port, and those that do not ask.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::pods::{annotated, annotation, is_true, pod};
use crate::support::space::Space;
use crate::support::{MARK, eventually, shared};

#[test]
fn a_pod_without_ports_stays_as_it_is() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-no-ports", |space| {
            let none = annotated(pod("none", &["--pause"], &json!([])), "");
            let reply = space.create(&none)?;
            ensure!(
                reply.contains("Warning:") && reply.contains("declares no container port"),
                "no warning: {reply}"
            );
            let none = eventually("the pod to be Ready", || {
                let none = space.pod("none")?;
                ensure!(is_true(&none, "Ready"), "not Ready");
                Ok(none)
            })?;
            ensure!(annotation(&none) == Some(""), "{:?}", annotation(&none));
            ensure!(
                none["metadata"]["annotations"][MARK].is_null(),
                "it has a request mark"
            );
            ensure!(
                none["spec"]["readinessGates"].is_null(),
                "it has a readiness gate"
            );
            Ok(())
        })
    })
}

#[test]
fn a_pod_that_does_not_ask_is_not_touched() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-not-asked", |space| {
            let plain = pod(
                "plain",
                &["--http", "9040"],
                &json!([{ "containerPort": 9040 }]),
            );
            space.create(&plain)?;
            let seen = eventually("the pod to be Ready", || {
                let seen = space.get(&["pod", "plain", "--show-managed-fields"])?;
                ensure!(is_true(&seen, "Ready"), "not Ready");
                Ok(seen)
            })?;
            ensure!(
                seen["metadata"]["annotations"].is_null(),
                "{}",
                seen["metadata"]["annotations"]
            );
            ensure!(
                seen["spec"]["readinessGates"].is_null(),
                "it has a readiness gate"
            );
            let text = seen.to_string();
            ensure!(
                !text.contains("portmapping-enforcer") && !text.contains("tkestack"),
                "{text}"
            );
            ensure!(
                seen["spec"]["containers"][0]["ports"]
                    == json!([{ "containerPort": 9040, "protocol": "TCP" }])
            );
            Ok(())
        })
    })
}

/// A warning about a controller's pod would go to the controller, and no person would see it.
#[test]
fn a_controllers_pod_without_ports_has_an_event_that_says_so() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-no-ports-set", |space| {
            let template = annotated(pod("unused", &["--pause"], &json!([])), "");
            space.create(&json!({
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": { "name": "none" },
                "spec": {
                    "replicas": 1,
                    "selector": { "matchLabels": { "app": "none" } },
                    "template": {
                        "metadata": {
                            "labels": { "app": "none" },
                            "annotations": template["metadata"]["annotations"],
                        },
                        "spec": template["spec"],
                    },
                },
            }))?;
            let none = eventually("the ReplicaSet's pod to be Ready", || {
                let pods = space.get(&["pods", "-l", "app=none"])?;
                let none = pods["items"][0].clone();
                ensure!(is_true(&none, "Ready"), "{}", none["status"]);
                Ok(none)
            })?;
            ensure!(
                none["spec"]["readinessGates"].is_null(),
                "it has a readiness gate"
            );
            let name = none["metadata"]["name"].as_str().context("no name")?;
            eventually("the event NoPorts on the pod", || {
                let events = space.events(name)?;
                let said = |(reason, note): &(String, String)| {
                    reason == "NoPorts" && note.contains("no container of the pod declares a port")
                };
                ensure!(events.iter().any(said), "{events:?}");
                Ok(())
            })
        })
    })
}
