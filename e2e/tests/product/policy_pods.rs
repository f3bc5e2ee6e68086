//! How little the product's own pods are permitted: by their manifests, by Pod Security, and in the
//! kernel's eyes.

use anyhow::{Context, Result, bail, ensure};
use e2e::{Cluster, install};
use serde_json::{Value, json};

use crate::support::space::Space;
use crate::support::{eventually, get, node_addresses, shared};

/// What the restricted level refuses of the enforcer: the host's network and three of its paths, the one
/// capability, and user 0 without any other capability.
const ENFORCER: [&str; 5] = [
    "host namespaces (hostNetwork=true)",
    "unrestricted capabilities (container \"enforcer\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
    "restricted volume types (volumes \"handover\", \"xtables-lock\", \"cni\" use restricted volume type \"hostPath\")",
    "runAsNonRoot != true (pod or containers \"keeper\", \"enforcer\" must set securityContext.runAsNonRoot=true)",
    "runAsUser=0 (pod must not set runAsUser=0)",
];

/// The pod that a workload makes, as a manifest of its own.
fn template(cluster: &Cluster, workload: &str) -> Result<Value> {
    let found = get(cluster, &["-n", install::NAMESPACE, workload])?;
    let mut pod = found["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("dry");
    Ok(pod)
}

/// What Pod Security warns of.
fn complaints(reply: &str) -> Vec<String> {
    let Some((_, list)) = reply.split_once("would violate PodSecurity \"restricted:latest\": ")
    else {
        return Vec::new();
    };
    // a comma in parentheses is no separator
    let (mut depth, mut all, mut one) = (0, Vec::new(), String::new());
    for letter in list.lines().next().unwrap_or_default().chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if letter == ',' && depth == 0 {
            all.push(std::mem::take(&mut one).trim().to_owned());
        } else {
            one.push(letter);
        }
    }
    all.push(one.trim().to_owned());
    all
}

#[test]
fn the_webhook_meets_the_restricted_level() -> Result<()> {
    shared(|cluster| {
        let levels =
            ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
        let levels = levels.each_ref().map(String::as_str);
        Space::with_labels(cluster, "policy-webhook", &levels, |space| {
            space.kubectl(&["create", "serviceaccount", "webhook"])?;
            let pod = template(cluster, "deployment/webhook")?;
            let (fine, reply) = space.try_create(&pod, &["--dry-run=server"])?;
            ensure!(fine && !reply.contains("Warning"), "{reply}");
            let mut broken = pod;
            broken["spec"]["hostNetwork"] = json!(true);
            let (fine, reply) = space.try_create(&broken, &["--dry-run=server"])?;
            ensure!(
                !fine && reply.contains("violates PodSecurity"),
                "the level is not in force: {reply}"
            );
            Ok(())
        })
    })
}

#[test]
fn the_enforcer_violates_the_restricted_level_only_where_it_must() -> Result<()> {
    shared(|cluster| {
        let level = "pod-security.kubernetes.io/warn=restricted";
        Space::with_labels(cluster, "policy-enforcer", &[level], |space| {
            space.kubectl(&["create", "serviceaccount", "enforcer"])?;
            let pod = template(cluster, "daemonset/enforcer")?;
            let (fine, reply) = space.try_create(&pod, &["--dry-run=server"])?;
            ensure!(fine, "{reply}");
            let found = complaints(&reply);
            ensure!(found == ENFORCER, "{found:#?}\nin {reply}");
            Ok(())
        })
    })
}

#[test]
fn no_container_requests_more_than_it_needs() -> Result<()> {
    shared(|cluster| {
        for (workload, container, added) in [
            ("deployment/webhook", "webhook", json!(null)),
            ("daemonset/enforcer", "enforcer", json!(["NET_ADMIN"])),
            ("daemonset/enforcer", "keeper", json!(null)),
        ] {
            let spec = &template(cluster, workload)?["spec"];
            let lists = [&spec["containers"], &spec["initContainers"]];
            let mut all = lists.iter().filter_map(|list| list.as_array()).flatten();
            let found = all
                .find(|one| one["name"] == container)
                .with_context(|| format!("no {container} in {workload}"))?;
            let context = &found["securityContext"];
            for (field, wanted) in [
                ("/privileged", json!(null)),
                ("/allowPrivilegeEscalation", json!(false)),
                ("/readOnlyRootFilesystem", json!(true)),
                ("/capabilities/drop", json!(["ALL"])),
                ("/capabilities/add", added),
                ("/seccompProfile", json!(null)), // the pod's
            ] {
                let value = context.pointer(field).unwrap_or(&Value::Null);
                ensure!(*value == wanted, "{container}{field} is {value}");
            }
            let pod = &spec["securityContext"]["seccompProfile"]["type"];
            ensure!(pod == "RuntimeDefault", "{workload}: seccomp is {pod}");
        }
        Ok(())
    })
}

/// A field of /proc/PID/status of the one process with this command line on a node; None if there is
/// no such process there.
fn status(cluster: &Cluster, node: &str, command: &str, field: &str) -> Result<Option<String>> {
    let found = cluster.exec(node, &["pgrep", "-x", "-f", command])?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    let Some(pid) = found.split_whitespace().next() else {
        return Ok(None);
    };
    let status = cluster.exec(node, &["cat", &format!("/proc/{pid}/status")])?;
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let value = line.with_context(|| format!("no {field} in {status}"))?;
    Ok(Some(value.trim_start_matches(':').trim().to_owned()))
}

/// `CAP_NET_ADMIN` is number 12 (capability.h).
const NET_ADMIN: &str = "0000000000001000";
const NOTHING: &str = "0000000000000000";

#[test]
fn no_process_has_more_rights_in_the_kernel() -> Result<()> {
    shared(|cluster| {
        let nodes = node_addresses(cluster)?;
        for (command, user, capabilities) in [
            ("/webhook.*", "65532", NOTHING),
            ("/enforcer run.*", "0", NET_ADMIN),
            ("/enforcer keep.*", "0", NOTHING),
        ] {
            let wanted = [
                ("Uid", user),
                ("CapEff", capabilities),
                ("CapPrm", capabilities),
                ("CapBnd", capabilities),
                ("CapInh", NOTHING),
                ("CapAmb", NOTHING),
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"), // a filter
            ];
            eventually(&format!("a process {command}"), || {
                for node in nodes.keys() {
                    if status(cluster, node, command, "Uid")?.is_none() {
                        continue;
                    }
                    for (field, wanted) in wanted {
                        let value = status(cluster, node, command, field)?.unwrap_or_default();
                        let first = value.split_whitespace().next().unwrap_or_default();
                        ensure!(first == wanted, "{command} on {node}: {field} is {value:?}");
                    }
                    return Ok(());
                }
                bail!("on no node")
            })?;
        }
        Ok(())
    })
}
