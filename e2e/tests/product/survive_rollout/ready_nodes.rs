//! Has each node an enforcer that is Ready, at every moment?

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Result, ensure};
use e2e::Cluster;
use e2e::api::{Api, WatchEvent};
use serde_json::Value;

use super::SYSTEM;
use crate::support::pods::is_true;

/// Follows the enforcers' pods: each change of them is seen.
///
/// `numberAvailable` of the DaemonSet would not do: of the pods of a node it counts the oldest one, which is not
/// Ready any more while it ends, although the next one is.
pub(super) struct ReadyNodes {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    changes: usize,
    /// Each moment at which a node had none.
    without: Vec<String>,
}

impl ReadyNodes {
    pub(super) fn watch(cluster: &Cluster) -> Result<Self> {
        let nodes = cluster.nodes()?;
        let api = Api::new(cluster.kubeconfig())?;
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let (until, found) = (Arc::clone(&stop), Arc::clone(&seen));
        // it ends by itself, at the latest when the watch has been quiet for some time
        thread::spawn(move || {
            let mut pods = BTreeMap::new();
            let path = format!("/api/v1/namespaces/{SYSTEM}/pods");
            let stopped = || until.load(Ordering::Relaxed);
            api.follow(&path, stopped, |event| {
                match event {
                    WatchEvent::All(all) => pods = all.iter().filter_map(enforcer).collect(),
                    WatchEvent::Applied(pod) => pods.extend(enforcer(&pod)),
                    WatchEvent::Deleted(pod) => {
                        if let Some((name, _)) = enforcer(&pod) {
                            pods.remove(&name);
                        }
                    }
                }
                let mut seen = found.lock().unwrap_or_else(PoisonError::into_inner);
                seen.changes += 1;
                for node in &nodes {
                    let mut here = pods.values().filter(|(of, _)| of == node);
                    if !here.any(|(_, ready)| *ready) {
                        seen.without.push(format!("{node}: {pods:?}"));
                    }
                }
            });
        });
        Ok(Self { stop, seen })
    }

    /// Fails if a node had no enforcer that was Ready.
    pub(super) fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{} changes of pods", seen.changes);
        ensure!(seen.changes > 10, "nothing was proven");
        let (times, first) = (seen.without.len(), seen.without.first());
        ensure!(times == 0, "{times} times none was Ready, first: {first:?}");
        Ok(())
    }
}

/// The name of an enforcer's pod, its node, and whether it is Ready.
fn enforcer(pod: &Value) -> Option<(String, (String, bool))> {
    let labels = &pod["metadata"]["labels"];
    if labels["app.kubernetes.io/component"] != "enforcer" {
        return None;
    }
    let name = pod["metadata"]["name"].as_str()?.to_owned();
    let node = pod["spec"]["nodeName"].as_str()?.to_owned();
    Some((name, (node, is_true(pod, "Ready"))))
}
