//! Whether a second `kubectl apply` of the same manifests changes anything.

use anyhow::{Result, ensure};
use e2e::paths;
use serde_json::Value;

use crate::support::world::{Session, on_both};

/// All of `manifests/base` but the registration, which these clusters have in another form, and the
/// enforcer, whose pods the nodes would have to run.
const FILES: [&str; 8] = [
    "namespace",
    "rbac",
    "policy-users",
    "policy-enforcer",
    "policy-templates",
    "policy-hints",
    "policy-webhook",
    "webhook",
];

fn kubectl(session: &Session<'_>, verb: &[&str], files: &[&str]) -> Result<String> {
    let base = paths::manifests().join("base");
    let files = files
        .iter()
        .map(|file| format!("--filename={}/{file}.yaml", base.display()));
    let verb = verb.iter().map(|word| (*word).to_owned());
    session
        .cluster()
        .kubectl_run(verb.chain(files).collect::<Vec<_>>())
}

/// The version of the budget that the API server stores.
fn version_of_budget(session: &Session<'_>) -> Result<Value> {
    let get = ["get", "poddisruptionbudget", "webhook", "-o", "json"];
    let namespace = ["-n", crate::support::objects::SYSTEM];
    let text = session
        .cluster()
        .kubectl_run([&get[..], &namespace].concat())?;
    let budget: Value = serde_json::from_str(&text)?;
    Ok(budget["metadata"]["generation"].clone())
}

/// kubectl's patch of a PodDisruptionBudget always carries the selector, whose patch strategy in the
/// API is "replace"; so kubectl says "configured" where it changed nothing.
#[test]
fn a_second_apply_changes_nothing() -> Result<()> {
    on_both(|session| {
        kubectl(session, &["apply"], &FILES)?;
        let before = version_of_budget(session)?;
        let said = kubectl(session, &["apply"], &FILES)?;
        let after = version_of_budget(session)?;
        kubectl(session, &["delete", "--wait=false"], &["webhook"])?;
        let changed: Vec<_> = said
            .lines()
            .filter(|line| !line.ends_with(" unchanged"))
            .collect();
        let expected = ["poddisruptionbudget.policy/webhook configured"];
        ensure!(changed == expected, "the second apply says {changed:?}");
        ensure!(before == after, "generation {before} became {after}");
        Ok(())
    })
}
