//! What do users notice when the cluster's CA rotates? Every pod gets another bundle of certificates.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install};
use serde_json::Value;

use crate::support::load::Load;
use crate::support::outside::Way;
use crate::support::parts::roll;
use crate::support::pods::{entries, is_true, mapped_pod, on_node};
use crate::support::space::Space;
use crate::support::{alone, eventually, get};

const SYSTEM: &str = install::NAMESPACE;
/// So many pod creations without a failure are a proof.
const ENOUGH: u64 = 1_000;

/// How often each pod's enforcer or webhook was restarted, and whether all of these pods are Ready.
fn restarts(cluster: &Cluster) -> Result<(BTreeMap<String, i64>, bool)> {
    let label = "app.kubernetes.io/name=portmapping";
    let pods = get(cluster, &["-n", SYSTEM, "pods", "-l", label])?;
    let pods = pods["items"].as_array().context("no list of pods")?;
    let mut found = BTreeMap::new();
    for pod in pods {
        let statuses = pod["status"]["containerStatuses"].as_array();
        for status in statuses.into_iter().flatten() {
            let count = status["restartCount"].as_i64();
            if ["enforcer", "webhook"]
                .iter()
                .any(|program| status["name"] == *program)
            {
                let pod = pod["metadata"]["name"].as_str().context("no name")?;
                found.insert(pod.to_owned(), count.context("no restartCount")?);
            }
        }
    }
    Ok((found, pods.iter().all(|pod: &Value| is_true(pod, "Ready"))))
}

#[test]
fn a_new_ca_bundle_is_taken_over_and_no_pod_is_refused() -> Result<()> {
    alone(|cluster| {
        // new pods, whose logs begin here
        roll(cluster)?;
        cluster.kubectl_run(["-n", SYSTEM, "rollout", "restart", "deployment/webhook"])?;
        install::rolled_out(cluster, SYSTEM, "deployment/webhook")?;
        Space::with(cluster, "authority-rotates", |space| {
            let before = eventually("four pods of the product", || {
                let (before, ready) = restarts(cluster)?;
                ensure!(ready && before.len() == 4, "{before:?}, Ready: {ready}");
                Ok(before)
            })?;
            space.create(&on_node(mapped_pod("web"), "node1"))?;
            let web = space.ready("web")?;
            let mapped = entries(&web)?;
            let load = Load::start(cluster, &space.name)?;
            cluster.add_authority()?;
            for pod in before.keys() {
                let (container, word) = if pod.starts_with("enforcer") {
                    ("enforcer", "starting over, to use the new one")
                } else {
                    ("webhook", "the cluster's CA has changed")
                };
                let log = ["-n", SYSTEM, "logs", pod, "-c", container];
                eventually(&format!("{pod} to use the new bundle"), || {
                    space.answers(&web, &mapped[0], Way::Http)?;
                    let log = cluster.kubectl_run(log)?;
                    ensure!(log.contains(word), "{log}");
                    Ok(())
                })?;
                load.say(&format!("{pod} uses the new bundle"));
            }
            load.end(ENOUGH)?;
            // a webhook that ends leaves reviews to the other one, which may end as well; and Kubernetes
            // replaces an enforcer that is not ready before the next one has started
            let now = eventually("all to be Ready", || {
                let (now, ready) = restarts(cluster)?;
                ensure!(ready, "{now:?}");
                Ok(now)
            })?;
            ensure!(now == before, "{now:?}, before {before:?}");
            ensure!(
                entries(&space.ready("web")?)? == mapped,
                "the mapping changed"
            );
            // only with the new bundle can the programs talk to the API server now
            cluster.serve_with_added_authority()?;
            eventually("the API server to answer with its new certificate", || {
                space.create(&on_node(mapped_pod("after"), "node2"))
            })?;
            let after = space.ready("after")?;
            space.answers(&after, &entries(&after)?[0], Way::Http)?;
            space.ready("web").map(drop)
        })
    })
}
