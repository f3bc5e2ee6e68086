//! Is a pod creation ever refused? The webhook is replaced, ended, rotated and damaged while pods are
//! created.

mod repairs;
mod stand_in;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install, paths};
use serde_json::{Value, json};

use self::repairs::repairs;
use self::stand_in::ShortLived;
use crate::support::caller::{Caller, patch_pod};
use crate::support::load::Load;
use crate::support::outside::Way;
use crate::support::pods::{annotated, annotation, entries, mapped_pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, alone, eventually, get, kubectl_with};

const SYSTEM: &str = install::NAMESPACE;
const SECRET: &str = "portmapping-webhook-tls";
/// So many pod creations without a failure are a proof.
const ENOUGH: u64 = 5_000;

/// The names of the webhook's living pods, with their nodes.
fn replicas(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let which = [
        "-n",
        SYSTEM,
        "pods",
        "-l",
        "app.kubernetes.io/component=webhook",
    ];
    let pods = get(cluster, &which)?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    let living = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(living
        .map(|pod| {
            (
                text(&pod["metadata"]["name"]),
                text(&pod["spec"]["nodeName"]),
            )
        })
        .collect())
}

/// Waits until the Deployment is rolled out and both replicas are Ready, with none on its way out.
fn settled(cluster: &Cluster) -> Result<()> {
    install::rolled_out(cluster, SYSTEM, "deployment/webhook")?;
    eventually("two replicas of the webhook", || {
        let found = replicas(cluster)?;
        ensure!(found.len() == 2, "{found:?}");
        Ok(())
    })
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    cluster
        .kubectl_run([&["-n", SYSTEM], arguments].concat())
        .map(drop)
}

#[test]
fn no_creation_fails_while_replicas_are_replaced_and_ended() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "webhook-replaced", |space| {
            settled(cluster)?;
            let load = Load::start(cluster, &space.name)?;
            kubectl(cluster, &["rollout", "restart", "deployment/webhook"])?;
            settled(cluster)?;
            load.say("rolling update");
            for (name, _) in replicas(cluster)? {
                kubectl(cluster, &["delete", "pod", &name])?;
                settled(cluster)?;
                load.say("a replica deleted");
            }
            for (name, node) in replicas(cluster)? {
                let restarts = || -> Result<i64> {
                    let pod = get(cluster, &["-n", SYSTEM, "pod", &name])?;
                    let count = &pod["status"]["containerStatuses"][0]["restartCount"];
                    count.as_i64().context("no restartCount")
                };
                let before = restarts()?;
                let ended = cluster.exec(&node, &["pkill", "-TERM", "-f", "^/webhook"])?;
                ensure!(ended.status.success(), "no webhook on {node}: {ended:?}");
                eventually("the webhook's container to restart", || {
                    ensure!(restarts()? > before, "not yet");
                    Ok(())
                })?;
                install::rolled_out(cluster, SYSTEM, "deployment/webhook")?;
                load.say("SIGTERM to a replica");
            }
            load.end(ENOUGH)
        })
    })
}

#[test]
fn five_rotations_of_certificate_and_authority_fail_no_review() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "webhook-rotates", |space| {
            let short = ShortLived::start(cluster)?;
            let load = Load::start(cluster, &space.name)?;
            let (mut leaves, mut authorities) = (BTreeSet::new(), BTreeSet::new());
            let start = Instant::now();
            eventually("five rotations of certificate and authority", || {
                let secret = get(cluster, &["-n", SYSTEM, "secret", SECRET])?;
                leaves.insert(secret["data"]["tls.crt"].to_string());
                authorities.insert(secret["data"]["ca.crt"].to_string());
                // the first of each was there before
                let (leaves, authorities) = (leaves.len() - 1, authorities.len() - 1);
                ensure!(
                    leaves.min(authorities) >= 5,
                    "{leaves} and {authorities} so far"
                );
                Ok(())
            })?;
            let took = start.elapsed().as_secs();
            println!(
                "{} certificates and {} bundles in {took} s",
                leaves.len() - 1,
                authorities.len() - 1
            );
            load.end(ENOUGH)?;
            short.end()
        })
    })
}

#[test]
fn a_lost_or_damaged_secret_is_repaired_without_a_failed_review() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "webhook-heals", |space| {
            let quick = ShortLived::quick(cluster)?;
            let secret = || get(cluster, &["-n", SYSTEM, "secret", SECRET]);
            let load = Load::start(cluster, &space.name)?;
            let before = secret()?;
            kubectl(cluster, &["delete", "secret", SECRET])?;
            let healed = |before: &Value| {
                eventually("the Secret to be healed", || {
                    let now = secret()?;
                    let (data, bundle) = (&now["data"], bundle(cluster)?);
                    ensure!(data["tls.crt"] != before["data"]["tls.crt"], "as before");
                    ensure!(data["ca.crt"] == json!(bundle), "the caBundle is another");
                    Ok(now)
                })
            };
            let second = healed(&before)?;
            load.say("the Secret deleted");
            let garbage =
                json!({ "data": { "tls.crt": "Z2FyYmFnZQ==", "ca.crt": "Z2FyYmFnZQ==" } });
            let patch = [
                "patch",
                "secret",
                SECRET,
                "--type=merge",
                "-p",
                &garbage.to_string(),
            ];
            kubectl(cluster, &patch)?;
            let garbled = secret()?;
            ensure!(garbled["data"]["tls.crt"] != second["data"]["tls.crt"]);
            eventually("the garbage to go", || {
                let now = secret()?;
                ensure!(
                    now["data"]["tls.crt"] != json!("Z2FyYmFnZQ=="),
                    "still there"
                );
                Ok(())
            })?;
            healed(&second)?;
            load.say("the Secret damaged");
            load.run_on(Duration::from_secs(3));
            load.end(1_000)?;
            quick.end()
        })
    })
}

/// How long no annotated pod may be refused after a repair.
const LASTS: Duration = Duration::from_secs(6);

/// How long at most a replaced registration has no caBundle. The best try counts: the machine may be busy
/// during one of them, and a timer would be late in all.
const TRUSTED_WITHIN: Duration = Duration::from_secs(1);

/// The times of the repairs so far; none for a cluster whose audit log cannot be read.
fn logged_repairs(cluster: &Cluster) -> Result<Vec<Duration>> {
    if cluster.is_ours() {
        repairs(cluster)
    } else {
        Ok(Vec::new())
    }
}

/// The caBundle, in base64.
fn bundle(cluster: &Cluster) -> Result<String> {
    let hook = get(cluster, &["mutatingwebhookconfiguration", "portmapping"])?;
    let bundle = &hook["webhooks"][0]["clientConfig"]["caBundle"];
    Ok(bundle.as_str().unwrap_or_default().to_owned())
}

#[test]
fn an_emptied_bundle_is_filled_again() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "webhook-bundle", |space| {
            settled(cluster)?;
            let before = bundle(cluster)?;
            ensure!(!before.is_empty(), "no caBundle");
            let empty = json!([{ "op": "remove", "path": "/webhooks/0/clientConfig/caBundle" }]);
            let empty = empty.to_string();
            let patch = [
                "patch",
                "mutatingwebhookconfiguration",
                "portmapping",
                "--type=json",
                "-p",
            ];
            cluster.kubectl_run([&patch[..], &[&empty]].concat())?;
            eventually("the caBundle to be back", || {
                ensure!(bundle(cluster)? == before, "not yet");
                Ok(())
            })?;
            eventually("the API server to trust the webhook", || {
                space.create(&mapped_pod("after"))
            })?;
            space.ready("after").map(drop)
        })
    })
}

#[test]
fn a_replaced_registration_is_trusted_again_and_stays_so() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "webhook-replaced-whole", |space| {
            let unchecked = ShortLived::unchecked(cluster)?;
            let (mut others, mut refused) = (BTreeSet::new(), Vec::new());
            let before = logged_repairs(cluster)?.len();
            // the manifest as a user has it: without what the webhook and the API server filled in
            let whole = get(cluster, &["mutatingwebhookconfiguration", "portmapping"])?;
            let notes = &whole["metadata"]["annotations"];
            let manifest = notes["kubectl.kubernetes.io/last-applied-configuration"].as_str();
            let manifest = manifest.context("it was not applied")?;
            ensure!(!manifest.contains("caBundle"), "{manifest}");
            for _replacement in 0..4 {
                let replace = ["replace", "--save-config", "-f", "-"];
                let (fine, reply) = kubectl_with(cluster, &replace, manifest)?;
                ensure!(fine, "{reply}");
                let (start, mut last) = (Instant::now(), Duration::ZERO);
                // The API server uses the earlier one for a moment. A repair that does not last never passes.
                eventually("annotated pods to be created without a refusal", || {
                    let begun = Instant::now();
                    while begun.elapsed() < LASTS {
                        let dry_run = ["--dry-run=server"];
                        let (fine, reply) = space.try_create(&mapped_pod("probe"), &dry_run)?;
                        if !fine {
                            last = start.elapsed();
                        }
                        if !fine && !reply.contains("x509") {
                            others.insert(reply.clone());
                        }
                        ensure!(fine, "{reply}");
                    }
                    Ok(())
                })?;
                ensure!(others.is_empty(), "refused for other reasons: {others:?}");
                refused.push(last);
            }
            let repairs: Vec<_> = logged_repairs(cluster)?.into_iter().skip(before).collect();
            println!(
                "the caBundle was back after {repairs:?}, the last pod was refused after {refused:?}"
            );
            if cluster.is_ours() {
                let best = repairs.iter().min().context("the log has no repair")?;
                ensure!(*best <= TRUSTED_WITHIN, "{repairs:?}");
                let best = refused.iter().min().context("nothing was tried")?;
                ensure!(*best <= TRUSTED_WITHIN, "refused until {refused:?}");
            }
            unchecked.end()
        })
    })
}

/// Puts the manifests of `manifests/overlays/ignore` in place of the base while `act` runs.
fn with_overlay(cluster: &Cluster, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let apply = |folder: &str| {
        let folder = paths::manifests().join(folder);
        cluster.kubectl_run(["apply".as_ref(), "-k".as_ref(), folder.as_os_str()])
    };
    apply("overlays/ignore")?;
    let outcome = kubectl(cluster, &["scale", "deployment/webhook", "--replicas=0"])
        .and_then(|()| {
            let label = "app.kubernetes.io/component=webhook";
            kubectl(
                cluster,
                &["wait", "--for=delete", "pod", "-l", label, "--timeout=60s"],
            )
        })
        .and_then(|()| act());
    apply("base")?;
    kubectl(cluster, &["scale", "deployment/webhook", "--replicas=2"])?;
    settled(cluster)?;
    outcome
}

#[test]
fn with_failure_policy_ignore_pods_are_mapped_without_the_webhook() -> Result<()> {
    alone(|cluster| {
        let level = "pod-security.kubernetes.io/enforce=baseline";
        Space::with(cluster, "webhook-ignored", |space| {
            with_overlay(cluster, || {
                space.create(&mapped_pod("web"))?;
                let web = space.ready("web")?;
                ensure!(
                    web["spec"]["readinessGates"].is_null(),
                    "an unexpected readiness gate: {}",
                    web["spec"]["readinessGates"]
                );
                space.answers(&web, &entries(&web)?[0], Way::Http)?;
                eventually("an event that tells of the missing gate", || {
                    let events = space.events("web")?;
                    let reported = events.iter().any(|(reason, note)| {
                        reason == "PortsMapped" && note.contains("no readiness gate")
                    });
                    ensure!(reported, "{events:?}");
                    Ok(())
                })?;
                // the policies are in force all the same
                let forged = annotation(&web).unwrap_or_default().to_owned();
                let (fine, reply) =
                    space.try_create(&annotated(mapped_pod("copy"), &forged), &[])?;
                ensure!(
                    !fine && reply.contains("only the enforcer writes a result"),
                    "{reply}"
                );
                let (fine, reply) = space.try_create(&annotated(mapped_pod("bad"), "yes"), &[])?;
                ensure!(
                    !fine && reply.contains("yes is not a valid request"),
                    "{reply}"
                );
                let other = forged.replace("\"hostPort\":2", "\"hostPort\":1");
                let body = json!({ "metadata": { "annotations": { ANNOTATION: other } } });
                let at = (space.name.as_str(), "web", "");
                let reply = patch_pod(cluster, &Caller::Admin, at, &body)?.err();
                ensure!(
                    reply
                        .as_deref()
                        .is_some_and(|text| text.contains("only the enforcer")),
                    "{reply:?}"
                );
                Space::with_labels(cluster, "webhook-ignored-strict", &[level], |strict| {
                    let (fine, reply) = strict.try_create(&mapped_pod("web"), &[])?;
                    ensure!(
                        !fine && reply.contains("tkestack.io/portmapping: allowed"),
                        "{reply}"
                    );
                    Ok(())
                })
            })
        })
    })
}
