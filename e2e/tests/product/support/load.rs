//! Pods created all the time, as dry runs through the webhook; an annotation changed all the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2e::Cluster;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

use super::pods::mapped_pod;
use super::{ANNOTATION, LIMIT, MARK, POLL};

/// Creations under way at once.
const IN_FLIGHT: usize = 8;
/// Each worker's pause between two: the machine is shared with the cluster.
const PAUSE: Duration = Duration::from_millis(20);

/// Creations in the background.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<BTreeMap<String, u64>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
}

impl Load {
    /// Starts, and returns when the first pods were created.
    pub(crate) fn start(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let (namespace, with) = (namespace.to_owned(), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(create(kubeconfig, &namespace, &with))
        });
        let load = Self { shared, thread };
        load.wait_for(50)?;
        Ok(load)
    }

    /// Prints how far it is.
    pub(crate) fn say(&self, after: &str) {
        let (done, failed) = self.count();
        println!("{after}: {done} pods created so far, {failed} failures");
    }

    /// Goes on for a while.
    pub(crate) fn run_on(&self, time: Duration) {
        thread::sleep(time);
        self.say("a while later");
    }

    fn count(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.shared.done), load(&self.shared.failed))
    }

    fn wait_for(&self, enough: u64) -> Result<()> {
        let looks = LIMIT.as_millis() / POLL.as_millis();
        for _ in 0..looks {
            let (done, failed) = self.count();
            if done + failed >= enough || self.thread.is_finished() {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        bail!("waited {} s for {enough} creations", LIMIT.as_secs())
    }

    /// Ends when there were enough; an error if one of them failed.
    pub(crate) fn end(self, enough: u64) -> Result<()> {
        self.wait_for(enough)?;
        self.shared.stop.store(true, Ordering::Relaxed);
        let (done, _) = self.count();
        let failures = self.thread.join().ok().context("the load panicked")??;
        println!("{done} pods created, failures: {failures:?}");
        ensure!(
            failures.is_empty(),
            "of {done} creations failed: {failures:#?}"
        );
        ensure!(done >= enough, "only {done} creations");
        Ok(())
    }
}

/// Creates pods until it is stopped; returns each error, and how often it came.
async fn create(
    kubeconfig: Kubeconfig,
    namespace: &str,
    shared: &Shared,
) -> Result<BTreeMap<String, u64>> {
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let api: Api<Pod> = Api::namespaced(Client::try_from(config)?, namespace);
    let pod: Pod = serde_json::from_value(mapped_pod("load"))?;
    let workers = (0..IN_FLIGHT).map(|_| worker(&api, &pod, shared));
    let mut all = BTreeMap::new();
    for (failure, times) in futures::future::join_all(workers)
        .await
        .into_iter()
        .flatten()
    {
        *all.entry(failure).or_default() += times;
    }
    Ok(all)
}

async fn worker(api: &Api<Pod>, pod: &Pod, shared: &Shared) -> BTreeMap<String, u64> {
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let mut failures = BTreeMap::new();
    while !shared.stop.load(Ordering::Relaxed) {
        let failure = match api.create(&dry_run, pod).await {
            Ok(created) if is_reviewed(&created) => None,
            Ok(_) => Some("created without mark and gate".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(failure) = failure {
            *failures.entry(failure).or_default() += 1;
            shared.failed.fetch_add(1, Ordering::Relaxed);
        } else {
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
    failures
}

/// Whether the webhook has seen the pod.
fn is_reviewed(pod: &Pod) -> bool {
    let notes = pod.metadata.annotations.as_ref();
    let gates = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.readiness_gates.as_ref());
    notes.is_some_and(|notes| notes.contains_key(MARK))
        && gates.is_some_and(|gates| gates.iter().any(|gate| gate.condition_type == ANNOTATION))
}

/// An annotation that changes without a pause, in the background.
pub(crate) struct Changes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
    begun: Instant,
}

impl Changes {
    /// Starts to write these values in turn.
    pub(crate) fn start(
        cluster: &Cluster,
        namespace: &str,
        pod: &'static str,
        values: [String; 2],
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let (namespace, stopped) = (namespace.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                        .await?;
                let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, &namespace);
                let mut written = 0;
                for value in values.iter().cycle() {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let patch = json!({ "metadata": { "annotations": { (ANNOTATION): value } } });
                    pods.patch(pod, &PatchParams::default(), &Patch::Merge(patch))
                        .await?;
                    written += 1;
                }
                Ok(written)
            })
        });
        let begun = Instant::now();
        Ok(Self {
            stop,
            thread,
            begun,
        })
    }

    /// Ends them; how many there were each second.
    pub(crate) fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.join();
        let written = thread.map_err(|_| anyhow!("the writer of changes panicked"))??;
        Ok(written / self.begun.elapsed().as_secs().max(1))
    }
}
