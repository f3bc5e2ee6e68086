//! Can a setting be changed without knowing the subcommand?

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::agree::CRITICAL;
use crate::render::{chart, find, kustomize, overlay};

/// Every container of the two workloads.
fn containers(objects: &[Value]) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (kind, name) in [("Deployment", "webhook"), ("DaemonSet", "enforcer")] {
        let spec = &find(objects, kind, name)?["spec"]["template"]["spec"];
        for list in ["initContainers", "containers"] {
            all.extend(spec[list].as_array().cloned().unwrap_or_default());
        }
    }
    Ok(all)
}

#[test]
fn args_hold_nothing_but_the_subcommand() -> Result<()> {
    for directory in ["base", "overlays/cert-manager", "overlays/legacy-iptables"] {
        for container in containers(&kustomize(directory)?)? {
            let expected = match container["name"].as_str() {
                Some("keeper") => json!(["keep"]),
                Some("enforcer") => json!(["run"]),
                _ => Value::Null,
            };
            let args = &container["args"];
            ensure!(
                *args == expected,
                "{directory}: args of {}: {args}",
                container["name"]
            );
        }
    }
    Ok(())
}

#[test]
fn a_changed_range_keeps_the_other_settings_and_the_uninstall_overlay_uninstalls() -> Result<()> {
    let patched = overlay(
        "range",
        "resources: [MANIFESTS/overlays/uninstall]\n\
         patches:\n\
         - patch: |\n    apiVersion: apps/v1\n    kind: DaemonSet\n    metadata: {name: enforcer, namespace: portmapping-system}\n    spec: \
         {template: {spec: {containers: [{name: enforcer, env: [{name: PORTMAPPING_RANGE, value: 21000-24999}]}]}}}\n",
    )?;
    let set = find(&patched, "DaemonSet", "enforcer")?;
    let enforcer = &set["spec"]["template"]["spec"]["containers"][0];
    ensure!(
        enforcer["args"] == json!(["uninstall", "--stay"]),
        "args: {}",
        enforcer["args"]
    );
    let usual = kustomize("base")?;
    let usual = find(&usual, "DaemonSet", "enforcer")?;
    let usual = &usual["spec"]["template"]["spec"]["containers"][0]["env"];
    let names = |list: &Value| -> Vec<Value> {
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|variable| variable["name"].clone())
            .collect()
    };
    ensure!(
        names(&enforcer["env"])
            .iter()
            .all(|name| names(usual).contains(name)),
        "{}",
        enforcer["env"]
    );
    ensure!(
        names(&enforcer["env"]).len() == names(usual).len(),
        "a variable is missing: {}",
        enforcer["env"]
    );
    Ok(())
}

#[test]
fn the_chart_refuses_a_range_or_an_address_that_the_programs_would_refuse() -> Result<()> {
    let render = |value: &str, text: &str| chart("any", &format!("{value}={text}"));
    for (value, text) in [
        ("range", "80-90"),
        ("range", "1000-2000"),
        ("range", "20000"),
        ("hostAddresses", "nodes"),
        ("hostAddresses", "10.0.0.0/33"),
        ("hostAddresses", "fd00::/129"),
        ("hostAddresses", r"node\,all"),
        ("hostAddresses", r"10.0.0.0/24\,"),
    ] {
        let Err(error) = render(value, text) else {
            bail!("{value}={text} was accepted");
        };
        let error = format!("{error:#}");
        ensure!(
            error.contains(&format!("/{value}")) || error.contains(&format!("{value}:")),
            "the refusal of {text} does not name {value}: {error}"
        );
    }
    for (value, text) in [
        ("range", "1024-2047"),
        ("range", "9000-65535"),
        ("hostAddresses", ""),
        ("hostAddresses", "all"),
        ("hostAddresses", "10.0.0.11"),
        ("hostAddresses", r"10.0.0.0/24\, fd00::/64\,fd00::1"),
    ] {
        render(value, text)?;
    }
    Ok(())
}

/// The enforcer knows the node's addresses before it has read the Node object.
#[test]
fn the_enforcer_gets_the_host_addresses_of_its_pod() -> Result<()> {
    let wanted = json!({
        "name": "HOST_IPS",
        "valueFrom": { "fieldRef": { "fieldPath": "status.hostIPs" } },
    });
    for (what, objects) in [("base", kustomize("base")?), ("chart", chart("any", "")?)] {
        let set = find(&objects, "DaemonSet", "enforcer")?;
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        ensure!(container["name"] == "enforcer", "{what}: {container}");
        let variables = container["env"].as_array();
        ensure!(
            variables.is_some_and(|variables| variables.contains(&wanted)),
            "{what}: {}",
            container["env"]
        );
    }
    Ok(())
}

#[test]
fn only_the_classes_that_an_operator_chooses_evict_pods() -> Result<()> {
    let critical = "resources: [MANIFESTS/base]\ncomponents: [MANIFESTS/components/critical]\n";
    let (enforcer, webhook) = (
        json!("system-node-critical"),
        json!("system-cluster-critical"),
    );
    let ours = json!("portmapping-enforcer");
    for (what, objects, classes) in [
        ("base", kustomize("base")?, [&ours, &Value::Null]),
        ("chart", chart("any", "")?, [&ours, &Value::Null]),
        (
            "critical",
            overlay("classes", critical)?,
            [&enforcer, &webhook],
        ),
        ("the values", chart("any", CRITICAL)?, [&enforcer, &webhook]),
        (
            "no class",
            chart("any", "enforcer.priorityClassName=")?,
            [&Value::Null; 2],
        ),
    ] {
        let workloads = [("DaemonSet", "enforcer"), ("Deployment", "webhook")];
        for ((kind, name), class) in workloads.into_iter().zip(classes) {
            let pod = &find(&objects, kind, name)?["spec"]["template"]["spec"];
            let found = &pod["priorityClassName"];
            ensure!(found == class, "{what}: {name} has the class {found}");
        }
        // a class that nothing uses would only be in the way
        let own = find(&objects, "PriorityClass", "portmapping-enforcer");
        ensure!(own.is_ok() == (classes[0] == &ours), "{what}: {own:?}");
        if let Ok(own) = own {
            ensure!(own["preemptionPolicy"] == "Never", "{what}: {own}");
            // above it the API server takes system-* only
            ensure!(own["value"] == 1_000_000_000, "{what}: {own}");
        }
    }
    Ok(())
}

#[test]
fn drains_virtual_nodes_and_meshes_do_not_block_the_workloads() -> Result<()> {
    let base = kustomize("base")?;
    let budget = find(&base, "PodDisruptionBudget", "webhook")?;
    ensure!(budget["spec"]["maxUnavailable"] == 1, "{}", budget["spec"]);
    for (kind, name) in [("Deployment", "webhook"), ("DaemonSet", "enforcer")] {
        let template = &find(&base, kind, name)?["spec"]["template"];
        let labels = &template["metadata"]["labels"];
        ensure!(labels["sidecar.istio.io/inject"] == "false", "{labels}");
        ensure!(labels["istio.io/dataplane-mode"] == "none", "{labels}");
        let annotations = &template["metadata"]["annotations"];
        ensure!(
            annotations["linkerd.io/inject"] == "disabled",
            "{annotations}"
        );
    }
    let set = find(&base, "DaemonSet", "enforcer")?;
    let terms = &set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    // one term: terms are alternatives, and one that excludes nothing would undo the others
    ensure!(
        terms.as_array().is_some_and(|terms| terms.len() == 1),
        "{terms}"
    );
    let term = &terms[0]["matchExpressions"];
    for (key, operator, values) in [
        ("kubernetes.io/arch", "In", json!(["amd64", "arm64"])),
        ("type", "NotIn", json!(["virtual-kubelet"])),
        (
            "eks.amazonaws.com/compute-type",
            "NotIn",
            json!(["fargate"]),
        ),
    ] {
        let wanted = json!({ "key": key, "operator": operator, "values": values });
        ensure!(
            term.as_array().is_some_and(|terms| terms.contains(&wanted)),
            "{key}: {term}"
        );
    }
    Ok(())
}
