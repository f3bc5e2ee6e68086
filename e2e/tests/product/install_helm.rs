//! Does the chart install portmapping, wherever a user wants it?

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::artifacts::go;
use e2e::{Cluster, install, paths, process};

use crate::support::config;
use crate::support::outside::Way;
use crate::support::pods::{entries, mapped_pod};
use crate::support::space::Space;

/// `helm install` of the chart; fails as helm does.
fn helm_install(cluster: &Cluster, release: &str, namespace: &str) -> Result<String> {
    cluster.kubectl_run(["create", "namespace", namespace])?;
    let privileged = "pod-security.kubernetes.io/enforce=privileged";
    cluster.kubectl_run(["label", "namespace", namespace, privileged])?;
    let mut helm = process::command(go::release_tools()?.join("helm"));
    helm.env("KUBECONFIG", cluster.kubeconfig())
        .args(["install", release, "--namespace", namespace])
        .arg(paths::manifests().join("chart"));
    process::run(&mut helm, Duration::from_mins(2))
}

#[test]
fn helm_installs_once_into_any_namespace_under_any_name() -> Result<()> {
    let cluster = Cluster::start(&config("helm"))?;
    go::release_tools()?;
    let start = Instant::now();
    helm_install(&cluster, "any-name", "elsewhere")?;
    for workload in ["deployment/webhook", "daemonset/enforcer"] {
        install::rolled_out(&cluster, "elsewhere", workload)?;
    }
    Space::with(&cluster, "mapped", |space| {
        space.create(&mapped_pod("first"))?;
        let pod = space.ready("first")?;
        for entry in entries(&pod)? {
            space.answers(&pod, &entry, Way::Http)?;
        }
        println!(
            "helm install to the first mapped pod that answers: {:.1} s",
            start.elapsed().as_secs_f64()
        );
        Ok(())
    })?;
    let Err(second) = helm_install(&cluster, "second", "another") else {
        anyhow::bail!("a second installation was accepted");
    };
    let text = format!("{second:#}");
    ensure!(
        text.contains("exists and cannot be imported into the current release"),
        "the refusal of a second installation does not say why: {text}"
    );
    cluster.stop()
}
