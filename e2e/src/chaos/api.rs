//! What the driver asks of the API server. It may be down: every call is tried again for a while.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::POD_LABEL;
use super::view::ANNOTATION;
use crate::api::{Api, Refused};
use crate::install::NAMESPACE as SYSTEM;

/// All tries together.
const PATIENCE: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);

/// Acts as the cluster's admin.
pub(super) struct Admin {
    api: Api,
    pods: String,
    services: String,
}

impl Admin {
    pub(super) fn new(kubeconfig: &Path, namespace: &str) -> Result<Self> {
        Ok(Self {
            api: Api::new(kubeconfig)?,
            pods: format!("/api/v1/namespaces/{namespace}/pods"),
            services: format!("/api/v1/namespaces/{namespace}/services"),
        })
    }

    pub(super) fn create(&self, pod: &Value) -> Result<()> {
        let create = || self.api.create(&self.pods, pod);
        tolerate(409, retry("create a pod", create))
    }

    pub(super) fn delete(&self, name: &str) -> Result<()> {
        let path = format!("{}/{name}", self.pods);
        tolerate(404, retry("delete a pod", || self.api.delete(&path)))
    }

    pub(super) fn evict(&self, name: &str) -> Result<()> {
        let path = format!("{}/{name}/eviction", self.pods);
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name },
        });
        tolerate(
            404,
            retry("evict a pod", || self.api.create(&path, &eviction)),
        )
    }

    /// Sets the annotation of a pod, or removes it (null).
    pub(super) fn annotate(&self, name: &str, value: &Value) -> Result<()> {
        let path = format!("{}/{name}", self.pods);
        let change = json!({ "metadata": { "annotations": { ANNOTATION: value } } });
        let annotate = || self.api.patch(&path, &change);
        tolerate(404, retry("annotate a pod", annotate))
    }

    /// Creates a Service whose one pod is this one; returns its cluster IP.
    pub(super) fn create_service(&self, name: &str, pod: &str, port: u16) -> Result<String> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "selector": { POD_LABEL: pod }, "ports": [{ "port": port, "targetPort": 9040 }] },
        });
        let create = || self.api.create(&self.services, &service);
        tolerate(409, retry("create a Service", create))?;
        let path = format!("{}/{name}", self.services);
        let service = retry("read a Service", || self.api.get(&path))?;
        let ip = service["spec"]["clusterIP"].as_str();
        Ok(ip.context("a Service without a cluster IP")?.to_owned())
    }

    pub(super) fn delete_service(&self, name: &str) -> Result<()> {
        let path = format!("{}/{name}", self.services);
        tolerate(404, retry("delete a Service", || self.api.delete(&path)))
    }

    /// The living enforcer pods by node.
    pub(super) fn enforcers(&self) -> Result<Vec<(String, String)>> {
        let pods = self.enforcer_pods()?;
        let living = items(&pods).filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(living
            .filter_map(|pod| {
                let node = pod["spec"]["nodeName"].as_str()?;
                Some((
                    node.to_owned(),
                    pod["metadata"]["name"].as_str()?.to_owned(),
                ))
            })
            .collect())
    }

    fn enforcer_pods(&self) -> Result<Value> {
        let label = "labelSelector=app.kubernetes.io/component=enforcer";
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods?{label}");
        retry("list the enforcer's pods", || self.api.get(&path))
    }

    /// Begins a rolling update of the enforcers to these arguments.
    pub(super) fn set_enforcer_args<S: serde::Serialize>(&self, args: &[S]) -> Result<()> {
        let patch = json!({ "spec": { "template": { "spec": {
            "containers": [{ "name": "enforcer", "args": args }],
        } } } });
        let set = || self.api.patch(&enforcer_set(), &patch);
        retry("change the enforcer's arguments", set).map(drop)
    }

    /// How often the enforcer with these arguments that failed most has been started again.
    pub(super) fn restarts_with(&self, args: &[&str]) -> Result<u64> {
        let pods = self.enforcer_pods()?;
        let with = items(&pods).filter(|pod| pod["spec"]["containers"][0]["args"] == json!(args));
        let restarts = with.filter_map(|pod| {
            let containers = pod["status"]["containerStatuses"].as_array()?;
            containers.first()?["restartCount"].as_u64()
        });
        Ok(restarts.max().unwrap_or_default())
    }

    pub(super) fn delete_enforcer(&self, name: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{name}");
        let delete = || self.api.delete(&path);
        tolerate(404, retry("delete an enforcer's pod", delete))
    }

    /// What `kubectl rollout restart` does; `stamp` must be new each time.
    pub(super) fn roll(&self, stamp: &str) -> Result<()> {
        let key = "kubectl.kubernetes.io/restartedAt";
        let patch =
            json!({ "spec": { "template": { "metadata": { "annotations": { key: stamp } } } } });
        let restart = || self.api.patch(&enforcer_set(), &patch);
        retry("restart the DaemonSet", restart).map(drop)
    }

    /// What is missing until the DaemonSet is rolled out.
    pub(super) fn unrolled(&self) -> Result<Option<String>> {
        let set = retry("read the DaemonSet", || self.api.get(&enforcer_set()))?;
        let status = &set["status"];
        let count = |field: &str| status[field].as_i64().unwrap_or_default();
        let (wanted, updated) = (
            count("desiredNumberScheduled"),
            count("updatedNumberScheduled"),
        );
        let available = count("numberAvailable");
        let seen = status["observedGeneration"] == set["metadata"]["generation"];
        let done = seen && updated >= wanted && available >= wanted;
        Ok((!done).then(|| format!("{updated} of {wanted} updated, {available} available")))
    }

    /// The first node that is not Ready.
    pub(super) fn unready_node(&self) -> Result<Option<String>> {
        let nodes = retry("list nodes", || self.api.get("/api/v1/nodes"))?;
        let unready = items(&nodes).find(|node| {
            let conditions = node["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            !conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
        });
        Ok(unready.and_then(|node| node["metadata"]["name"].as_str().map(str::to_owned)))
    }
}

fn enforcer_set() -> String {
    format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/enforcer")
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Calls until there is an answer that another try would not change.
fn retry(what: &str, call: impl Fn() -> Result<Value>) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        match call() {
            Err(error) if !is_final(&error) && Instant::now() < end => thread::sleep(PAUSE),
            answer => return answer.with_context(|| what.to_owned()),
        }
    }
}

fn refusal(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Refused>().map(|refused| refused.code)
}

/// Whether the API server has decided. An unreachable webhook (5xx) is no decision.
fn is_final(error: &anyhow::Error) -> bool {
    refusal(error).is_some_and(|code| (400..500).contains(&code) && code != 429)
}

/// An earlier try may have done it, or another fault.
fn tolerate(code: u16, answer: Result<Value>) -> Result<()> {
    match answer {
        Err(error) if refusal(&error) != Some(code) => Err(error),
        _ => Ok(()),
    }
}
