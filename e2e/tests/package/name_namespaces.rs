//! Can portmapping be installed in any namespace?

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::render::{find, overlay};

fn in_namespace(of: &str) -> Result<Vec<Value>> {
    overlay(
        &format!("namespace-{}", of.replace('/', "-")),
        &format!(
            "namespace: elsewhere\nresources: [MANIFESTS/{of}]\ntransformers: [MANIFESTS/transformers/namespace]\n"
        ),
    )
}

#[test]
fn no_object_names_the_default_namespace_in_another_one() -> Result<()> {
    for of in [
        "base",
        "overlays/cert-manager",
        "overlays/ignore",
        "overlays/legacy-iptables",
        "overlays/cilium",
    ] {
        for object in in_namespace(of)? {
            let text = object.to_string();
            ensure!(!text.contains("portmapping-system"), "{of}: {text}");
        }
    }
    Ok(())
}

#[test]
fn the_policies_name_the_accounts_of_the_namespace() -> Result<()> {
    let objects = in_namespace("base")?;
    for (policy, condition) in [
        (
            "portmapping-enforcer",
            "request.userInfo.username != 'system:serviceaccount:elsewhere:enforcer'",
        ),
        (
            "portmapping-users",
            "request.userInfo.username == 'system:serviceaccount:elsewhere:enforcer'",
        ),
        (
            "portmapping-namespaces",
            "request.userInfo.username != 'system:serviceaccount:elsewhere:enforcer'",
        ),
        (
            "portmapping-webhook",
            "request.userInfo.username == 'system:serviceaccount:elsewhere:webhook'",
        ),
    ] {
        let policy = find(&objects, "ValidatingAdmissionPolicy", policy)?;
        let conditions = policy["spec"]["matchConditions"].as_array();
        ensure!(
            conditions.into_iter().flatten().any(|one| one["expression"]
                .as_str()
                .is_some_and(|it| it.contains(condition))),
            "{condition} is in no condition of {}",
            policy["metadata"]["name"]
        );
    }
    Ok(())
}
