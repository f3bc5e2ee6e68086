//! Are pods mapped after etcd was restored from a backup?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::api::Api;
use e2e::{Cluster, Config, install};
use serde_json::json;

use crate::networks::kubernetes;
use crate::support::outside::{Way, at};
use crate::support::pods::{annotated, entries, mapped_pod, pod};
use crate::support::space::Space;
use crate::support::streams::call;
use crate::support::{config, eventually};

/// Versions that the backup lacks: more than the restored etcd reaches while pods wait.
const NEWER: u32 = 5_000;

/// `E2E_KUBERNETES=1.33` has no consistent streaming list by default.
#[test]
fn pods_are_mapped_after_etcd_was_restored_from_a_backup() -> Result<()> {
    let mut cluster = Cluster::start(&Config {
        nodes: 1,
        kubernetes: kubernetes()?,
        ..config("etcd")
    })?;
    install::install(&mut cluster)?;
    cluster.judged(|| Space::with(&cluster, "etcd-restored", |space| restore(&cluster, space)))?;
    cluster.stop()
}

fn restore(cluster: &Cluster, space: &Space<'_>) -> Result<()> {
    let ports = json!([{ "containerPort": 9040 }]);
    space.create(&annotated(pod("living", &["--tcp", "9040"], &ports), ""))?;
    let living = space.ready("living")?;
    let mapped = entries(&living)?;
    cluster.back_up_etcd()?;
    let api = Api::new(cluster.kubeconfig())?;
    let path = format!("/api/v1/namespaces/{}/configmaps", space.name);
    let object = json!({ "metadata": { "name": "newer" } });
    api.create(&path, &object)?;
    for number in 0..NEWER {
        let change = json!({ "data": { "number": number.to_string() } });
        api.patch(&format!("{path}/newer"), &change)?;
    }
    // the enforcer sees one of these versions
    space.kubectl(&["label", "pod", "living", "version=newer"])?;

    let answering = [(space.endpoint(&living, &mapped[0])?, "living".to_owned())];
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let caller = at(cluster, "client", move || {
        call(&answering, Duration::from_millis(20), &until)
    })?;
    cluster.restore_etcd()?;
    eventually("the API server to show the old state", || {
        let pod = space.pod("living")?;
        let newer = &pod["metadata"]["labels"]["version"];
        ensure!(newer.is_null(), "the label is there: {newer}");
        Ok(())
    })?;
    eventually("a pod to be created", || space.create(&mapped_pod("after")))?;
    let created = Instant::now();
    let after = space.ready("after")?;
    println!(
        "a new pod was mapped and Ready after {:?}",
        created.elapsed()
    );
    space.answers(&after, &entries(&after)?[0], Way::Http)?;
    stop.store(true, Ordering::Relaxed);
    let (calls, failures) = caller.join().ok().context("the caller panicked")??;
    println!("{calls} calls of the living pod");
    ensure!(
        failures.is_empty() && calls > 10,
        "{} of {calls} calls were not answered by their pod: {failures:?}",
        failures.len()
    );
    ensure!(
        entries(&space.pod("living")?)? == mapped,
        "the mapping changed"
    );
    Ok(())
}
