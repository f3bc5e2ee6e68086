//! The pods as a watch reports them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{Api, WatchEvent};

pub(super) const ANNOTATION: &str = "tkestack.io/portmapping";

/// A pod as the API server last reported it.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) node: String,
    /// One of each address family.
    pub(super) pod_ips: Vec<String>,
    /// Changes when the container restarts.
    pub(super) container: String,
    pub(super) running: bool,
    pub(super) ready: bool,
    pub(super) deleting: bool,
    /// The status, reason and message of our condition.
    pub(super) condition: String,
    /// Protocol, host port, container port; empty while nothing final is published.
    pub(super) entries: Vec<MappedPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MappedPort {
    pub(super) host_port: u16,
    pub(super) container_port: u16,
    pub(super) protocol: String,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: String,
}

impl Seen {
    /// Ready, mapped and not being deleted.
    pub(super) fn is_up(&self) -> bool {
        self.ready && !self.deleting && !self.entries.is_empty()
    }

    fn new(pod: &Value) -> Self {
        let (metadata, status) = (&pod["metadata"], &pod["status"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let conditions = list(&status["conditions"]);
        let is_true = |kind: &str| {
            conditions
                .iter()
                .any(|one| one["type"] == kind && one["status"] == "True")
        };
        let ours = conditions.iter().find(|one| one["type"] == ANNOTATION);
        let entries = if is_true(ANNOTATION) {
            let value = text(&metadata["annotations"][ANNOTATION]);
            serde_json::from_str(&value).unwrap_or_default()
        } else {
            Vec::new()
        };
        let containers = list(&status["containerStatuses"]);
        let running = containers
            .iter()
            .all(|container| container["state"]["running"].is_object());
        Self {
            uid: text(&metadata["uid"]),
            name: text(&metadata["name"]),
            node: text(&pod["spec"]["nodeName"]),
            pod_ips: list(&status["podIPs"])
                .iter()
                .map(|one| text(&one["ip"]))
                .collect(),
            running: running && status["phase"] == "Running",
            container: containers
                .iter()
                .map(|container| text(&container["containerID"]))
                .collect(),
            ready: is_true("Ready"),
            deleting: !metadata["deletionTimestamp"].is_null(),
            condition: ours.map_or("no condition".to_owned(), |one| {
                let [status, reason, message] =
                    ["status", "reason", "message"].map(|field| text(&one[field]));
                format!("{status} {reason} {message}")
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
        kubeconfig: &Path,
        namespace: &str,
        addresses: BTreeMap<String, String>,
    ) -> Result<Self> {
        let view = Self {
            pods: Arc::default(),
            addresses: Arc::new(addresses),
        };
        let api = Api::new(kubeconfig)?;
        let pods = Arc::clone(&view.pods);
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || api.follow(&path, || false, |change| update(&pods, change)))
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

fn update(pods: &Mutex<BTreeMap<String, Seen>>, change: WatchEvent) {
    let mut pods = pods.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = |pod: &Value| {
        let seen = Seen::new(pod);
        (seen.uid.clone(), seen)
    };
    match change {
        WatchEvent::All(all) => *pods = all.iter().map(seen).collect(),
        WatchEvent::Applied(pod) => pods.extend([seen(&pod)]),
        WatchEvent::Deleted(pod) => drop(pods.remove(&seen(&pod).0)),
    }
}
