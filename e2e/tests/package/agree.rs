//! Do Helm and kustomize install the same?

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::render::{chart, find, kustomize, overlay};

pub(crate) const NAMESPACE: &str = "portmapping-system";

/// What a directory of `manifests` holds besides the base, and the chart's values for the same.
const OVERLAYS: [(&str, &str); 4] = [
    ("ignore", "failurePolicy=Ignore"),
    ("cert-manager", "certManager=true"),
    ("legacy-iptables", "legacyIptables=true"),
    ("cilium", "cilium=true"),
];
const COMPONENTS: [(&str, &str); 5] = [
    ("critical-quota", "resourceQuota=true"),
    ("critical", CRITICAL),
    ("network-policy", "networkPolicy=true"),
    (
        "host-network",
        "webhook.hostNetwork=true,webhook.port=10260,webhook.healthPort=10261",
    ),
    ("openshift", "openshift=true"),
];

/// The priority classes with which enforcer and webhook win against pods of users.
pub(crate) const CRITICAL: &str = "enforcer.priorityClassName=system-node-critical,webhook.priorityClassName=system-cluster-critical";

/// By kind and name; without the Namespace, which Helm does not render, without Helm's hooks, and with variables in one order.
fn comparable(objects: Vec<Value>) -> BTreeMap<(String, String), Value> {
    objects
        .into_iter()
        .filter(|object| object["kind"] != "Namespace" && !is_hook(object))
        .map(|mut object| {
            for list in ["initContainers", "containers"] {
                let containers = object.pointer_mut(&format!("/spec/template/spec/{list}"));
                for container in containers
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                {
                    if let Some(variables) = container["env"].as_array_mut() {
                        variables.sort_by_key(|variable| variable["name"].to_string());
                    }
                }
            }
            let key = [&object["kind"], &object["metadata"]["name"]].map(ToString::to_string);
            let [kind, name] = key;
            ((kind, name), object)
        })
        .collect()
}

fn is_hook(object: &Value) -> bool {
    !object["metadata"]["annotations"]["helm.sh/hook"].is_null()
}

pub(crate) fn agree(what: &str, kustomize: Vec<Value>, chart: Vec<Value>) -> Result<()> {
    let (kustomize, chart) = (comparable(kustomize), comparable(chart));
    let names = |objects: &BTreeMap<_, _>| -> Vec<_> { objects.keys().cloned().collect() };
    let (left, right) = (names(&kustomize), names(&chart));
    ensure!(
        left == right,
        "{what}: kustomize has {left:?}, helm {right:?}"
    );
    for (key, object) in &kustomize {
        let other = &chart[key];
        ensure!(
            object == other,
            "{what}: {key:?} differs:\nkustomize {object}\nhelm      {other}"
        );
    }
    Ok(())
}

#[test]
fn helm_and_kustomize_install_equal_objects() -> Result<()> {
    agree("base", kustomize("base")?, chart(NAMESPACE, "")?)?;
    for (name, values) in OVERLAYS {
        agree(
            name,
            kustomize(&format!("overlays/{name}"))?,
            chart(NAMESPACE, values)?,
        )?;
    }
    for (name, values) in COMPONENTS {
        let text =
            format!("resources: [MANIFESTS/base]\ncomponents: [MANIFESTS/components/{name}]\n");
        agree(
            name,
            overlay(&format!("component-{name}"), &text)?,
            chart(NAMESPACE, values)?,
        )?;
    }
    Ok(())
}

#[test]
fn helm_and_kustomize_agree_in_another_namespace_and_with_another_registry() -> Result<()> {
    let text = "namespace: elsewhere\n\
         resources: [MANIFESTS/base]\n\
         transformers: [MANIFESTS/transformers/namespace]\n\
         images:\n\
         - {name: localhost/portmapping-webhook, newName: mirror.example/team/portmapping-webhook, newTag: v7}\n\
         - {name: localhost/portmapping-enforcer, newName: mirror.example/team/portmapping-enforcer, newTag: v7}\n";
    // kubectl ignores the namespace that kustomize gives to objects of the cluster
    let cluster_scoped = |object: &mut Value| {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind.starts_with("ValidatingAdmissionPolicy")
            && let Some(meta) = object["metadata"].as_object_mut()
        {
            meta.remove("namespace");
        }
    };
    let mut kustomized = overlay("agree-elsewhere", text)?;
    kustomized.iter_mut().for_each(cluster_scoped);
    let values = "images.registry=mirror.example/team,images.tag=v7";
    agree("elsewhere", kustomized, chart("elsewhere", values)?)
}

#[test]
fn the_chart_never_renders_what_others_write() -> Result<()> {
    for values in ["", "certManager=true"] {
        let objects = chart(NAMESPACE, values)?;
        let registration = find(&objects, "MutatingWebhookConfiguration", "portmapping")?;
        let webhook = &registration["webhooks"][0];
        // a GitOps tool would set them back to the rendered value, again and again
        ensure!(
            webhook["clientConfig"].get("caBundle").is_none(),
            "{webhook}"
        );
        ensure!(webhook.get("namespaceSelector").is_none(), "{webhook}");
        ensure!(objects == chart(NAMESPACE, values)?, "not deterministic");
        // nothing but the uninstallation removes rules
        let text = serde_json::to_string(&objects)?;
        for word in ["preStop", "finalizers"] {
            ensure!(!text.contains(word), "{word} in the chart");
        }
    }
    Ok(())
}

#[test]
fn the_keepers_memory_limit_follows_from_the_range() -> Result<()> {
    for (range, limit) in [
        ("20000-29999", "128Mi"),
        ("20000-20999", "71Mi"),
        ("10000-49999", "320Mi"),
    ] {
        let objects = chart(NAMESPACE, &format!("range={range}"))?;
        let set = find(&objects, "DaemonSet", "enforcer")?;
        let pod = &set["spec"]["template"]["spec"];
        let keeper = &pod["initContainers"][0];
        ensure!(
            keeper["resources"]["limits"] == json!({ "memory": limit }),
            "{range}: {}",
            keeper["resources"]
        );
        for container in [keeper, &pod["containers"][0]] {
            let variable = json!({ "name": "PORTMAPPING_RANGE", "value": range });
            let env = container["env"].as_array();
            ensure!(
                env.is_some_and(|env| env.contains(&variable)),
                "{container}"
            );
        }
    }
    Ok(())
}

/// The variable that holds the DaemonSet of the job after `helm uninstall`.
fn uninstall_set(objects: &[Value]) -> Result<Value> {
    let job = find(objects, "Job", "portmapping-uninstall")?;
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let text = container["env"][0]["value"].as_str();
    Ok(serde_json::from_str(text.context("no DaemonSet")?)?)
}

#[test]
fn helm_uninstall_runs_on_the_nodes_what_the_overlay_runs() -> Result<()> {
    let overlay = kustomize("overlays/uninstall")?;
    let overlay = find(&overlay, "DaemonSet", "enforcer")?["spec"]["template"]["spec"].clone();
    ensure!(
        overlay["affinity"].is_object(),
        "the overlay has no affinity"
    );
    let values = "enforcer.nodeSelector.pool=edge,enforcer.tolerations=null,\
         enforcer.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key=a,\
         images.pullSecrets={a}";
    for (namespace, values) in [(NAMESPACE, ""), ("elsewhere", values)] {
        let objects = chart(namespace, values)?;
        let set = uninstall_set(&objects)?;
        ensure!(set["metadata"]["namespace"] == namespace, "{set}");
        let pod = &set["spec"]["template"]["spec"];
        let (ours, theirs) = (&pod["containers"][0], &overlay["containers"][0]);
        for field in ["args", "securityContext"] {
            ensure!(ours[field] == theirs[field], "{field}: {ours} and {theirs}");
        }
        let enforcer = find(&objects, "DaemonSet", "enforcer")?;
        let job = find(&objects, "Job", "portmapping-uninstall")?;
        for pod in [pod, &job["spec"]["template"]["spec"]] {
            let wanted = &enforcer["spec"]["template"]["spec"]["imagePullSecrets"];
            ensure!(&pod["imagePullSecrets"] == wanted, "{pod} and {wanted}");
            // also where the enforcer ran only earlier
            for field in ["nodeSelector", "tolerations", "affinity"] {
                let wanted = &overlay[field];
                ensure!(&pod[field] == wanted, "{field}: {pod} and {wanted}");
            }
        }
        for volume in pod["volumes"].as_array().context("no volumes")? {
            let known = overlay["volumes"].as_array();
            ensure!(
                known.is_some_and(|known| known.contains(volume)),
                "{volume}"
            );
        }
    }
    let without = chart(NAMESPACE, "uninstall.cleanNodes=false")?;
    ensure!(
        find(&without, "Job", "portmapping-uninstall").is_err(),
        "the value has no effect"
    );
    Ok(())
}
