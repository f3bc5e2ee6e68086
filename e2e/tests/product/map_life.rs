//! When does a mapping begin and end? Requested late, removed, pod deleted, pod completed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::caller::patch_in_turn;
use crate::support::outside::{Way, is_refused};
use crate::support::pods::{
    annotated, annotation, condition, container, entries, mapped_pod, on_node, pod,
};
use crate::support::space::Space;
use crate::support::{ANNOTATION, MARK, eventually, node_addresses, shared};

/// Pairs of words, 14 to 40 ms apart.
const TURNS: u64 = 60;

#[test]
fn a_running_pod_is_mapped_when_annotated_and_unmapped_when_not() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-late", |space| {
            space.create(&pod(
                "late",
                &["--http", "9040"],
                &json!([{ "containerPort": 9040 }]),
            ))?;
            space.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
            space.kubectl(&["annotate", "pod", "late", &format!("{ANNOTATION}=")])?;
            let late = space.mapped("late")?;
            let entry = entries(&late)?.remove(0);
            space.answers(&late, &entry, Way::Http)?;
            ensure!(
                late["metadata"]["annotations"][MARK].is_string(),
                "no request mark"
            );

            // kubectl apply of a bare pod does this each time
            space.kubectl(&[
                "annotate",
                "--overwrite",
                "pod",
                "late",
                &format!("{ANNOTATION}="),
            ])?;
            let again = space.mapped("late")?;
            ensure!(
                entries(&again)?[0] == entry,
                "the port moved: {:?}",
                entries(&again)?
            );

            space.kubectl(&["annotate", "pod", "late", &format!("{ANNOTATION}-")])?;
            let endpoint = space.endpoint(&late, &entry)?;
            eventually("the unmapped port to refuse", || {
                ensure!(is_refused(cluster, endpoint)?, "{endpoint} still answers");
                let late = space.pod("late")?;
                ensure!(annotation(&late).is_none(), "the annotation is back");
                ensure!(
                    late["metadata"]["annotations"][MARK].is_null(),
                    "the mark is left"
                );
                ensure!(
                    condition(&late, ANNOTATION).is_none(),
                    "the condition is left"
                );
                Ok(())
            })?;
            let events = space.events("late")?;
            ensure!(
                events.iter().any(|(reason, _)| reason == "PortsReleased"),
                "{events:?}"
            );
            Ok(())
        })
    })
}

#[test]
fn the_last_of_two_words_counts_however_close_they_are() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-words", |space| {
            space.create(&mapped_pod("words"))?;
            space.ready("words")?;
            let word =
                |value: Value| json!({ "metadata": { "annotations": { ANNOTATION: value } } });
            let (first, second) = (r#"[{"containerPort":7001}]"#, r#"[{"containerPort":7002}]"#);
            for turn in 0..TURNS {
                let pause = Duration::from_millis(14 + turn % 27);
                let removal = turn % 3 == 0;
                let last = if removal { Value::Null } else { json!(second) };
                let words = [word(json!(first)), word(last)];
                patch_in_turn(cluster, (space.name.as_str(), "words"), &words, pause)?;
                eventually("the last word to count", || {
                    let pod = space.pod("words")?;
                    let condition = condition(&pod, ANNOTATION).context("no condition")?;
                    if removal {
                        ensure!(
                            annotation(&pod).is_none(),
                            "turn {turn}: {:?}",
                            annotation(&pod)
                        );
                        ensure!(condition["reason"] == "Released", "{condition}");
                    } else {
                        let ports: Vec<u16> =
                            entries(&pod)?.iter().map(|e| e.container_port).collect();
                        ensure!(ports == [7002], "turn {turn}: {ports:?}");
                        ensure!(condition["status"] == "True", "{condition}");
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_gated_pod_without_a_request_has_the_reason_in_its_condition() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-gated", |space| {
            space.create(&mapped_pod("gated"))?;
            space.ready("gated")?;
            space.kubectl(&["annotate", "pod", "gated", &format!("{ANNOTATION}-")])?;
            eventually("the condition to have the reason", || {
                let gated = space.pod("gated")?;
                let condition = condition(&gated, ANNOTATION).context("no condition")?;
                ensure!(
                    condition["status"] == "False" && condition["reason"] == "Released",
                    "{condition}"
                );
                Ok(())
            })?;
            space.kubectl(&["annotate", "pod", "gated", &format!("{ANNOTATION}=")])?;
            let gated = space.ready("gated")?;
            space.answers(&gated, &entries(&gated)?[0], Way::Http)
        })
    })
}

#[test]
fn a_deleted_pods_port_refuses_and_another_pod_is_mapped() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-deleted", |space| {
            let nodes = node_addresses(cluster)?;
            let (node, _) = nodes.first_key_value().context("no node")?;
            space.create(&on_node(mapped_pod("first"), node))?;
            let first = space.ready("first")?;
            let entry = entries(&first)?.remove(0);
            let endpoint = space.endpoint(&first, &entry)?;
            space.answers(&first, &entry, Way::Http)?;
            space.kubectl(&["delete", "pod", "first"])?;
            eventually("the deleted pod's port to refuse", || {
                ensure!(is_refused(cluster, endpoint)?, "{endpoint} still answers");
                Ok(())
            })?;
            if cluster.is_ours() {
                eventually("the deleted pod's rules to go", || {
                    let saved = cluster.exec(node, &["iptables-save", "-t", "nat"])?;
                    let text = String::from_utf8_lossy(&saved.stdout).into_owned();
                    let uid = first["metadata"]["uid"].as_str().context("no uid")?;
                    ensure!(
                        text.contains("PORTMAPPING") && !text.contains(uid),
                        "a rule is left"
                    );
                    Ok(())
                })?;
            }
            space.create(&on_node(mapped_pod("second"), node))?;
            let second = space.ready("second")?;
            let other = entries(&second)?.remove(0);
            ensure!(
                other.host_port != entry.host_port,
                "the port was reused before its cool-down"
            );
            space.answers(&second, &other, Way::Http)
        })
    })
}

#[test]
fn a_completed_jobs_port_refuses() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-job", |space| {
            let ports = json!([{ "containerPort": 9040 }]);
            let mut template = annotated(
                pod("unused", &["--http", "9040", "--exit-after", "8"], &ports),
                "",
            );
            template["spec"]["restartPolicy"] = json!("Never");
            space.create(&json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": "job" },
            "spec": { "template": {
                "metadata": { "labels": { "app": "job" }, "annotations": template["metadata"]["annotations"] },
                "spec": template["spec"],
            } },
        }))?;
            let name = eventually("the Job's pod", || {
                let pods = space.get(&["pods", "-l", "app=job"])?;
                Ok(pods["items"][0]["metadata"]["name"]
                    .as_str()
                    .context("no pod yet")?
                    .to_owned())
            })?;
            let running = space.mapped(&name)?;
            let entry = entries(&running)?.remove(0);
            let endpoint = space.endpoint(&running, &entry)?;
            // it is mapped before its program listens
            eventually("the Job's pod to answer", || {
                space.answers(&running, &entry, Way::Http)
            })?;
            space.kubectl(&[
                "wait",
                "--for=condition=complete",
                "job/job",
                "--timeout=60s",
            ])?;
            eventually("the completed pod's port to refuse", || {
                ensure!(is_refused(cluster, endpoint)?, "{endpoint} still answers");
                let pod = space.pod(&name)?;
                let condition = condition(&pod, ANNOTATION).context("no condition")?;
                ensure!(
                    condition["status"] == "False" && condition["reason"] == "Released",
                    "{condition}"
                );
                ensure!(
                    annotation(&pod) == Some(""),
                    "the result still stands: {:?}",
                    annotation(&pod)
                );
                Ok(())
            })
        })
    })
}

#[test]
fn an_ended_pod_that_a_finalizer_keeps_names_no_port() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-finalizer", |space| {
            let mut kept = mapped_pod("kept");
            kept["metadata"]["finalizers"] = json!(["example.com/keep"]);
            space.create(&kept)?;
            space.ready("kept")?;
            space.kubectl(&["delete", "pod", "kept", "--wait=false"])?;
            let outcome = eventually("the released port to be named no more", || {
                let kept = space.pod("kept")?;
                let condition = condition(&kept, ANNOTATION).context("no condition")?;
                ensure!(condition["reason"] == "Released", "{condition}");
                ensure!(annotation(&kept) == Some(""), "{:?}", annotation(&kept));
                Ok(())
            });
            let patch = r#"{"metadata":{"finalizers":null}}"#;
            space.kubectl(&["patch", "pod", "kept", "--type=merge", "-p", patch])?;
            outcome
        })
    })
}

#[test]
fn a_sidecar_is_reached_while_it_drains_after_the_main_container_ended() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-sidecar", |space| {
            let mut drains = mapped_pod("drains");
            let mut sidecar = container(&["--http", "9040"], &json!([{ "containerPort": 9040 }]));
            sidecar["name"] = json!("sidecar");
            sidecar["restartPolicy"] = json!("Always");
            sidecar["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 300 } } });
            drains["spec"]["initContainers"] = json!([sidecar]);
            drains["spec"]["containers"] = json!([container(&["--exit-after", "1"], &json!([]))]);
            drains["spec"]["restartPolicy"] = json!("Never");
            drains["spec"]["terminationGracePeriodSeconds"] = json!(300);
            let node = "node1";
            space.create(&on_node(drains, node))?;
            let drains = space.mapped("drains")?;
            eventually("the main container to end", || {
                let state = &space.pod("drains")?["status"]["containerStatuses"][0]["state"];
                ensure!(state["terminated"].is_object(), "{state}");
                Ok(())
            })?;
            space.kubectl(&["delete", "pod", "drains", "--wait=false"])?;
            // the enforcer has seen the deletion by now, because it has mapped a later pod
            space.create(&on_node(mapped_pod("next"), node))?;
            space.ready("next")?;
            let outcome = space.answers(&drains, &entries(&drains)?[0], Way::Http);
            // the port is free for other tests now, and not when the time is over
            space.kubectl(&["delete", "pod", "drains", "--force"])?;
            outcome
        })
    })
}

/// What the API server takes from a user and passes on: a time that no Rust type has, and a byte that is no
/// UTF-8.
#[test]
fn absurd_managed_fields_of_one_pod_do_not_keep_others_from_their_ports() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "life-fields", |space| {
            let node = node_addresses(cluster)?.into_keys().next();
            let node = node.context("no node")?;
            let late = "9999-12-31T00:00:00Z";
            let fields = json!({ "f:metadata": { "f:annotations": { "f:HERE": {} } } });
            let mut odd = on_node(mapped_pod("odd"), &node);
            odd["apiVersion"] = json!("v1");
            odd["kind"] = json!("Pod");
            odd["metadata"]["managedFields"] = json!([{
                "manager": "m", "operation": "Update", "apiVersion": "v1", "time": late,
                "fieldsType": "FieldsV1", "fieldsV1": fields,
            }]);
            let text = odd.to_string();
            let (before, after) = text.split_once("HERE").context("no place")?;
            let bytes = [before.as_bytes(), b"\xff", after.as_bytes()].concat();
            let file = std::env::temp_dir().join(format!("{}-odd.json", space.name));
            std::fs::write(&file, bytes)?;
            let path = format!("/api/v1/namespaces/{}/pods", space.name);
            let created = space.kubectl(&["create", "--raw", &path, "-f", &file.to_string_lossy()]);
            std::fs::remove_file(&file)?;
            created?;
            let fields = space.kubectl(&["get", "--raw", &format!("{path}/odd")])?;
            ensure!(fields.contains(late), "the time is not kept: {fields}");
            ensure!(
                fields.contains("f:\u{fffd}"),
                "the byte is not kept: {fields}"
            );
            space.ready("odd")?;
            space.create(&on_node(mapped_pod("other"), &node))?;
            let other = space.ready("other")?;
            space.answers(&other, &entries(&other)?[0], Way::Http)
        })
    })
}
