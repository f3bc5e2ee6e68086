//! Is the test of an installation the same for Helm and kustomize, where the enforcers are, and may it read what it checks?

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agree::NAMESPACE;
use crate::render::{chart, find, kustomize};

const TEST: &str = "portmapping-test";

#[test]
fn helm_test_runs_what_kustomize_users_apply() -> Result<()> {
    let bare = |mut object: Value| {
        if let Some(meta) = object["metadata"].as_object_mut() {
            meta.remove("annotations");
        }
        // which nodes: the chart writes out the default of the program
        if let Some(variables) = object.pointer_mut("/spec/template/spec/containers/0/env") {
            let kept = variables.as_array().into_iter().flatten();
            let kept = kept.filter(|variable| variable["name"] != "PORTMAPPING_TEST_NODES");
            *variables = kept.cloned().collect();
        }
        object
    };
    let objects = chart(NAMESPACE, "")?;
    for wanted in kustomize("test")? {
        let [kind, name] = [&wanted["kind"], &wanted["metadata"]["name"]].map(Value::as_str);
        let (kind, name) = (kind.context("no kind")?, name.context("no name")?);
        let object = bare(find(&objects, kind, name)?.clone());
        ensure!(
            object == wanted,
            "{kind} {name}:\nkustomize {wanted}\nhelm      {object}"
        );
    }
    Ok(())
}

#[test]
fn the_test_runs_where_the_enforcers_do() -> Result<()> {
    let spec = |objects: &[Value], kind: &str, name: &str| -> Result<Value> {
        Ok(find(objects, kind, name)?["spec"]["template"]["spec"].clone())
    };
    let (set, job) = (kustomize("base")?, kustomize("test")?);
    let (set, job) = (
        spec(&set, "DaemonSet", "enforcer")?,
        spec(&job, "Job", TEST)?,
    );
    ensure!(set["affinity"].is_object(), "the enforcer has no affinity");
    for field in ["nodeSelector", "affinity"] {
        ensure!(job[field] == set[field], "{field}: {job} and {set}");
    }
    let term = "enforcer.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]";
    let values = format!("enforcer.nodeSelector.pool=edge,{term}.key=pool,{term}.operator=Exists");
    for values in ["", values.as_str()] {
        let objects = chart(NAMESPACE, values)?;
        let set = spec(&objects, "DaemonSet", "enforcer")?;
        let job = spec(&objects, "Job", TEST)?;
        for field in ["nodeSelector", "affinity"] {
            ensure!(job[field] == set[field], "{field}: {job} and {set}");
        }
    }
    Ok(())
}

#[test]
fn the_test_may_read_every_policy_that_names_an_account() -> Result<()> {
    let role = kustomize("test")?;
    let rules = &find(&role, "ClusterRole", TEST)?["rules"];
    let mut readable = Vec::new();
    for rule in rules.as_array().context("no rules")? {
        let resources = rule["resources"].as_array().context("no resources")?;
        if resources.contains(&json!("validatingadmissionpolicies")) {
            readable.extend(
                rule["resourceNames"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            );
        }
    }
    let base = kustomize("base")?;
    let ours = base.iter().filter(|object| {
        let account = format!("system:serviceaccount:{NAMESPACE}:");
        object["kind"] == "ValidatingAdmissionPolicy"
            && object["spec"]["matchConditions"]
                .to_string()
                .contains(&account)
    });
    let names: Vec<_> = ours.map(|policy| &policy["metadata"]["name"]).collect();
    ensure!(names.len() > 2, "found only {names:?}");
    for name in names {
        ensure!(readable.contains(name), "{name} is not in {readable:?}");
    }
    Ok(())
}
