//! What the driver asks of the API server. It may be down: every call has a limit.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::install::NAMESPACE as SYSTEM;

/// One call.
const LIMIT: Duration = Duration::from_secs(5);
/// All tries together.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")
}

pub(super) async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The admin's hand, blocking.
pub(super) struct Admin {
    runtime: Runtime,
    client: Client,
    pods: Api<Pod>,
}

impl Admin {
    pub(super) fn new(kubeconfig: &Path, namespace: &str) -> Result<Self> {
        let runtime = runtime()?;
        let client = runtime.block_on(client(kubeconfig))?;
        let pods = Api::namespaced(client.clone(), namespace);
        Ok(Self {
            runtime,
            client,
            pods,
        })
    }

    /// Calls until there is an answer that another try would not change.
    fn ask<T, C>(&self, what: &str, call: impl Fn() -> C) -> Result<T>
    where
        C: Future<Output = kube::Result<T>>,
    {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.runtime.block_on(async {
                tokio::time::timeout(LIMIT, call())
                    .await
                    .map_err(|_| anyhow!("no answer within {LIMIT:?}"))
            });
            let error = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if is_final(&error) => {
                    return Err(error).with_context(|| what.to_owned());
                }
                Ok(Err(error)) => error.into(),
                Err(error) => error,
            };
            if Instant::now() > end {
                return Err(error).with_context(|| what.to_owned());
            }
            thread::sleep(PAUSE);
        }
    }

    pub(super) fn create(&self, pod: &Value) -> Result<()> {
        let pod: Pod = serde_json::from_value(pod.clone()).context("a manifest of ours")?;
        let params = PostParams::default();
        tolerate(
            409,
            self.ask("create a pod", || self.pods.create(&params, &pod)),
        )
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        let params = DeleteParams::default();
        tolerate(
            404,
            self.ask("delete a pod", || self.pods.delete(name, &params)),
        )
    }

    pub(super) fn evict(&self, name: &str) -> Result<()> {
        let params = EvictParams::default();
        tolerate(
            404,
            self.ask("evict a pod", || self.pods.evict(name, &params)),
        )
    }

    /// The living enforcer pods by node.
    pub(super) fn enforcers(&self) -> Result<Vec<(String, String)>> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let selector = ListParams::default().labels("app.kubernetes.io/component=enforcer");
        let pods = self.ask("list the enforcer's pods", || api.list(&selector))?;
        let living = pods
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(living
            .filter_map(|pod| Some((pod.spec?.node_name?, pod.metadata.name?)))
            .collect())
    }

    pub(super) fn delete_enforcer(&self, name: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM);
        let params = DeleteParams::default();
        tolerate(
            404,
            self.ask("delete an enforcer's pod", || api.delete(name, &params)),
        )
    }

    fn enforcer_set(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), SYSTEM)
    }

    /// What `kubectl rollout restart` does; `stamp` must be new each time.
    pub(super) fn roll(&self, stamp: &str) -> Result<()> {
        let key = "kubectl.kubernetes.io/restartedAt";
        let body =
            json!({ "spec": { "template": { "metadata": { "annotations": { key: stamp } } } } });
        let patch = Patch::Strategic(&body);
        let (set, params) = (self.enforcer_set(), PatchParams::default());
        self.ask("restart the DaemonSet", || {
            set.patch("enforcer", &params, &patch)
        })
        .map(drop)
    }

    /// What is missing until the DaemonSet is rolled out.
    pub(super) fn unrolled(&self) -> Result<Option<String>> {
        let api = self.enforcer_set();
        let set = self.ask("look at the DaemonSet", || api.get("enforcer"))?;
        let status = set.status.unwrap_or_default();
        let wanted = status.desired_number_scheduled;
        let updated = status.updated_number_scheduled.unwrap_or_default();
        let available = status.number_available.unwrap_or_default();
        let seen = status.observed_generation == set.metadata.generation;
        let done = seen && updated >= wanted && available >= wanted;
        Ok((!done).then(|| format!("{updated} of {wanted} updated, {available} available")))
    }

    /// The first node that is not Ready.
    pub(super) fn unready_node(&self) -> Result<Option<String>> {
        let api: Api<Node> = Api::all(self.client.clone());
        let all = ListParams::default();
        let nodes = self.ask("list nodes", || api.list(&all))?;
        let unready = nodes.items.into_iter().find(|node| {
            let status = node.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            !conditions
                .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        });
        Ok(unready.and_then(|node| node.metadata.name))
    }
}

/// Whether the API server has decided. A webhook without a living pod is no decision.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

/// An earlier try may have done it, or another fault.
fn tolerate<T>(code: u16, answer: Result<T>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(error) => match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) if status.code == code => Ok(()),
            _ => Err(error),
        },
    }
}
