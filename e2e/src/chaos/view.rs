//! The pods as a user's watch shows them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use serde::Deserialize;

use super::api;

const ANNOTATION: &str = "tkestack.io/portmapping";
/// After a failed call; the API server may be meant to be down.
const PAUSE: Duration = Duration::from_millis(100);

/// A pod as the API server last told.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) node: String,
    /// Of each family.
    pub(super) pod_ips: Vec<String>,
    /// Changes when the container is started anew.
    pub(super) container: String,
    pub(super) running: bool,
    pub(super) ready: bool,
    pub(super) deleting: bool,
    /// What the condition says when it is not True.
    pub(super) condition: String,
    /// Protocol, host port, container port; empty while nothing final is published.
    pub(super) entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    pub(super) protocol: String,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: String,
}

impl Seen {
    /// Ready, mapped and to stay, as far as the API server knows.
    pub(super) fn is_up(&self) -> bool {
        self.ready && !self.deleting && !self.entries.is_empty()
    }

    fn new(pod: Pod) -> Self {
        let status = pod.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let is_true = |kind: &str| {
            conditions
                .iter()
                .any(|c| c.type_ == kind && c.status == "True")
        };
        let ours = conditions.iter().find(|c| c.type_ == ANNOTATION);
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let value = annotations.get(ANNOTATION).map_or("", String::as_str);
        let entries = if is_true(ANNOTATION) {
            serde_json::from_str(value).unwrap_or_default()
        } else {
            Vec::new()
        };
        let containers = status.container_statuses.unwrap_or_default();
        let running = containers.iter().all(|container| {
            let state = container.state.as_ref();
            state.is_some_and(|state| state.running.is_some())
        });
        Self {
            uid: pod.metadata.uid.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            pod_ips: status
                .pod_ips
                .unwrap_or_default()
                .into_iter()
                .map(|one| one.ip)
                .collect(),
            running: running && status.phase.as_deref() == Some("Running"),
            container: containers
                .into_iter()
                .filter_map(|c| c.container_id)
                .collect(),
            ready: is_true("Ready"),
            deleting: pod.metadata.deletion_timestamp.is_some(),
            condition: ours.map_or("no condition".to_owned(), |condition| {
                let reason = condition.reason.as_deref().unwrap_or_default();
                format!(
                    "{} {reason} {}",
                    condition.status,
                    condition.message.as_deref().unwrap_or_default()
                )
            }),
            entries,
        }
    }
}

/// The newest state of every pod of one namespace, kept up by a thread that watches.
#[derive(Clone, Debug)]
pub(super) struct View {
    pods: Arc<Mutex<BTreeMap<String, Seen>>>,
    addresses: Arc<BTreeMap<String, String>>,
}

impl View {
    /// Begins to watch; the thread ends with the process.
    pub(super) fn watch(
        kubeconfig: PathBuf,
        namespace: &str,
        addresses: BTreeMap<String, String>,
    ) -> Result<Self> {
        let view = Self {
            pods: Arc::default(),
            addresses: Arc::new(addresses),
        };
        let (pods, namespace) = (Arc::clone(&view.pods), namespace.to_owned());
        let runtime = api::runtime()?;
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || runtime.block_on(follow(kubeconfig, namespace, pods)))
            .context("start a thread")?;
        Ok(view)
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All pods by uid.
    pub(super) fn all(&self) -> BTreeMap<String, Seen> {
        self.pods().clone()
    }

    pub(super) fn get(&self, uid: &str) -> Option<Seen> {
        self.pods().get(uid).cloned()
    }

    /// Whether a pod is Ready and mapped to exactly these ports.
    pub(super) fn still(&self, seen: &Seen) -> bool {
        let pods = self.pods();
        let now = pods.get(&seen.uid);
        now.is_some_and(|now| now.is_up() && now.entries == seen.entries)
    }

    /// Where a pod's container port is reached from outside.
    pub(super) fn endpoint(&self, seen: &Seen, protocol: &str) -> Option<SocketAddr> {
        let address = self.addresses.get(&seen.node)?.parse().ok()?;
        let entry = seen
            .entries
            .iter()
            .find(|entry| entry.protocol == protocol)?;
        Some(SocketAddr::new(address, entry.host_port))
    }

    /// The mapped host ports of a node, by protocol.
    pub(super) fn mapped(&self, node: &str) -> Vec<(String, u16)> {
        let pods = self.pods();
        let up = pods.values().filter(|pod| pod.node == node && pod.is_up());
        up.flat_map(|pod| {
            pod.entries
                .iter()
                .map(|entry| (entry.protocol.clone(), entry.host_port))
        })
        .collect()
    }
}

async fn follow(kubeconfig: PathBuf, namespace: String, pods: Arc<Mutex<BTreeMap<String, Seen>>>) {
    loop {
        if let Ok(client) = api::client(&kubeconfig).await {
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            let mut events = pin!(watcher::watcher(api, watcher::Config::default()));
            let mut listed = BTreeMap::new();
            while let Some(event) = events.next().await {
                let with = |change: &dyn Fn(&mut BTreeMap<String, Seen>)| {
                    change(&mut pods.lock().unwrap_or_else(PoisonError::into_inner));
                };
                match event {
                    Ok(Event::Apply(pod)) => {
                        let seen = Seen::new(pod);
                        with(&|pods| drop(pods.insert(seen.uid.clone(), seen.clone())));
                    }
                    Ok(Event::Delete(pod)) => {
                        let uid = pod.metadata.uid.unwrap_or_default();
                        with(&|pods| drop(pods.remove(&uid)));
                    }
                    Ok(Event::Init) => listed = BTreeMap::new(),
                    Ok(Event::InitApply(pod)) => {
                        let seen = Seen::new(pod);
                        listed.insert(seen.uid.clone(), seen);
                    }
                    Ok(Event::InitDone) => with(&|pods| pods.clone_from(&listed)),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
