//! What if the policies are not installed? A forged result is reported and overwritten, and no rule uses it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use e2e::{Cluster, paths};
use serde_json::json;

use crate::support::caller::{Caller, patch_pod};
use crate::support::outside::{Way, is_refused};
use crate::support::pods::{annotation, entries, mapped_pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, alone, eventually};

/// A port of the range that no pod has, and an address of no pod.
const FORGED: &str = r#"[{"hostPort":29998,"containerPort":9040,"protocol":"TCP","podName":"web","podIP":"10.99.99.99"}]"#;

/// Runs `act` while the writes of users are not checked, in the namespace of a pod named web.
fn without_policy(space: &Space<'_>, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let cluster = space.cluster;
    let file = paths::manifests().join("base/policy-users.yaml");
    let file = format!("--filename={}", file.display());
    let binding = ["validatingadmissionpolicybinding", "portmapping-users"];
    cluster.kubectl_run([&["delete"], &binding[..]].concat())?;
    let outcome = act();
    cluster.kubectl_run(["apply", &file])?;
    eventually("the policy to bite again", || {
        ensure!(forge(cluster, &space.name, true)?.is_err(), "not yet");
        Ok(())
    })?;
    outcome
}

/// Writes a result as the admin: the API server's refusal, if it refuses.
fn forge(cluster: &Cluster, namespace: &str, only_the_mark: bool) -> Result<Result<(), String>> {
    let notes = if only_the_mark {
        json!({ "tkestack.io/portmapping-request": "[]" })
    } else {
        json!({ ANNOTATION: FORGED })
    };
    let body = json!({ "metadata": { "annotations": notes } });
    patch_pod(cluster, &Caller::Admin, (namespace, "web", ""), &body)
}

#[test]
fn without_the_policies_a_forged_result_is_reported_and_overwritten() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "policy-missing", |space| {
            space.create(&mapped_pod("web"))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            without_policy(space, || {
                eventually("the forgery to be let through", || {
                    let refusal = forge(cluster, &space.name, false)?.err();
                    ensure!(refusal.is_none(), "{refusal:?}");
                    Ok(())
                })?;
                eventually("the truth to be back", || {
                    let now = space.pod("web")?;
                    ensure!(
                        annotation(&now) == annotation(&web),
                        "{:?}",
                        annotation(&now)
                    );
                    Ok(())
                })?;
                eventually("the event about it", || {
                    let events = space.events("web")?;
                    let reported = events.iter().any(|(reason, _)| reason == "ForgedResult");
                    ensure!(reported, "{events:?}");
                    Ok(())
                })?;
                space.answers(&web, &entry, Way::Http)?;
                let endpoint = space.endpoint(&web, &entry)?;
                let forged = SocketAddr::new(endpoint.ip(), 29998);
                ensure!(is_refused(cluster, forged)?, "{forged} leads somewhere");
                Ok(())
            })
        })
    })
}
