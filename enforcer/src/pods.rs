//! The watch on this node's pods: turns what the API server sends into [`PodFacts`].

#[cfg(test)]
mod memory_tests;
mod running;
mod slim;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kube::api::Api;
use kube::{Client, ResourceExt};
use portmapping_enforcer_core::{Condition, PodFacts, Record};
use portmapping_runtime::list_watch::{Event, ListWatch};
use portmapping_shared::contract::{ANNOTATION, CONDITION, REQUEST_MARK};
use portmapping_shared::request::MAX_DECLARED;
use portmapping_shared::{PodRef, PodSpec, PodUid};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

pub(crate) use self::running::running_at;
pub(crate) use self::slim::SlimPod;

/// Updates that may wait for the reconciler. When the queue is full, the watch waits; none is lost.
pub(crate) const POD_QUEUE: usize = 256;

/// Annotations of a mirror pod, by which the API shows a static pod.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// The fields of core/v1 `PodStatus` that decide about ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Address>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<Address>>,
    conditions: Option<Vec<PodCondition>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

impl PodStatus {
    /// All containers: main ones, init containers (sidecars are among them), ephemeral ones.
    fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        let lists = [
            &self.container_statuses,
            &self.init_container_statuses,
            &self.ephemeral_container_statuses,
        ];
        lists.into_iter().flatten().flatten()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Address {
    ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct PodCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct ContainerStatus {
    state: Option<ContainerState>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct ContainerState {
    running: Option<serde_json::Value>,
    terminated: Option<serde_json::Value>,
}

/// What the watch sends to the reconciler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodUpdate {
    /// A pod as it is now.
    Applied(Box<PodFacts>),
    /// A pod was deleted.
    Gone(PodUid),
    /// A list is complete: pods that are not in it were deleted.
    Relisted(BTreeSet<PodUid>),
}

/// Watches the node's pods until the reconciler goes away.
pub(crate) async fn watch(client: Client, node: &str, updates: mpsc::Sender<PodUpdate>) {
    let api = Api::all(client.clone());
    let bound = format!("spec.nodeName={node}");
    let mut events = ListWatch::<SlimPod>::new(client, api, &bound, "the node's pods");
    let mut list = List::default();
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = updates.closed() => return,
        };
        // a full queue makes the API server wait
        if let Some(update) = list.update(event)
            && updates.send(update).await.is_err()
        {
            return;
        }
    }
}

/// The pods of a list that is not complete.
#[derive(Default)]
struct List(BTreeSet<PodUid>);

impl List {
    fn update(&mut self, event: Event<SlimPod>) -> Option<PodUpdate> {
        match event {
            Event::ListStarted => {
                self.0.clear();
                None
            }
            Event::Listed(pod) => {
                let facts = facts(&pod)?;
                self.0.insert(facts.pod.uid.clone());
                Some(PodUpdate::Applied(Box::new(facts)))
            }
            Event::ListComplete => Some(PodUpdate::Relisted(std::mem::take(&mut self.0))),
            Event::Applied(pod) => Some(PodUpdate::Applied(Box::new(facts(&pod)?))),
            Event::Deleted(pod) => uid(&pod).map(PodUpdate::Gone),
        }
    }
}

fn uid(pod: &SlimPod) -> Option<PodUid> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    match uid.parse() {
        Ok(uid) => Some(uid),
        Err(error) => {
            tracing::error!(%error, pod = pod.name_any(), "a pod has no usable uid; it is ignored");
            None
        }
    }
}

/// Returns the uid under which the runtime knows a static pod: the kubelet's hash of its manifest. The
/// API shows the pod as a mirror pod, whose annotations both name the hash.
fn runtime_uid(pod: &SlimPod) -> Option<PodUid> {
    let hash = pod.annotations().get(CONFIG_HASH)?;
    // 32 hexadecimal digits, so that it is never the uid of another pod in the API
    let plain = hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mirrored = pod.annotations().get(CONFIG_MIRROR) == Some(hash);
    (plain && mirrored).then(|| hash.parse().ok()).flatten()
}

/// Returns what the state machine needs of a pod; None if it has no usable uid.
#[must_use]
pub(crate) fn facts(pod: &SlimPod) -> Option<PodFacts> {
    let uid = uid(pod)?;
    let status = pod.status.clone().unwrap_or_default();
    let annotation = |key: &str| pod.annotations().get(key).cloned();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let condition = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.kind == CONDITION);
    let finished = ended || pod.deleting && all_terminated(&status);
    let asks = pod.annotations().contains_key(ANNOTATION);
    let mark = annotation(REQUEST_MARK);
    // of a pod that has ended only a result is of use; thousands of them may be on the node
    let has_result = mark.is_some() || condition.is_some();
    Some(PodFacts {
        pod: PodRef {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid,
        },
        runtime_uid: runtime_uid(pod),
        spec: what_counts(&pod.spec, asks, finished),
        version: pod.resource_version().unwrap_or_default(),
        record: Record {
            annotation: annotation(ANNOTATION).filter(|_| !finished || has_result),
            mark,
            condition: condition.map(|condition| Condition {
                status: condition.status == "True",
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
            }),
        },
        annotation_manager: pod.annotation_manager.clone(),
        pod_ips: addresses(status.pod_ips.as_deref(), status.pod_ip.as_deref()),
        host_ips: addresses(status.host_ips.as_deref(), status.host_ip.as_deref()),
        started: has_started(&status),
        finished,
        deleting: pod.deleting,
    })
}

/// Returns the part of a spec that can still count. A user may declare as many ports as etcd takes, and
/// ended pods stay in the list, without a limit on their number.
fn what_counts(spec: &PodSpec, asks: bool, finished: bool) -> PodSpec {
    if finished {
        return PodSpec {
            node_name: spec.node_name.clone(),
            host_network: spec.host_network,
            ..PodSpec::default()
        };
    }
    let mut spec = spec.clone();
    let gates = &mut spec.readiness_gates;
    gates.retain(|gate| gate.condition_type == CONDITION);
    gates.truncate(1);
    gates.shrink_to_fit();
    let (host_network, mut left) = (spec.host_network, MAX_DECLARED);
    for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
        container.ports.retain(|port| {
            let counts = left > 0 && (asks || host_network || port.host_port != 0);
            left -= usize::from(counts);
            counts
        });
        container.ports.shrink_to_fit();
    }
    spec
}

/// Returns whether the kubelet says that the pod's sandbox is ready, or that a container has started. A
/// hostNetwork pod has an address in its status before that.
fn has_started(status: &PodStatus) -> bool {
    let ready = |it: &PodCondition| it.kind == "PodReadyToStartContainers" && it.status == "True";
    let begun = |it: &ContainerStatus| it.is_running() || it.is_terminated();
    status.conditions.iter().flatten().any(ready) || status.containers().any(begun)
}

/// Returns whether all main containers have ended, and no sidecar runs on. A deleted pod of which this
/// is true serves no client, and its address may be reused before the API server reports its deletion.
fn all_terminated(status: &PodStatus) -> bool {
    let main = status.container_statuses.as_deref().unwrap_or_default();
    let serves = status.containers().any(ContainerStatus::is_running);
    !main.is_empty() && main.iter().all(ContainerStatus::is_terminated) && !serves
}

impl ContainerStatus {
    fn is_running(&self) -> bool {
        self.state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    }

    fn is_terminated(&self) -> bool {
        self.state
            .as_ref()
            .is_some_and(|state| state.terminated.is_some())
    }
}

fn addresses(all: Option<&[Address]>, first: Option<&str>) -> Vec<IpAddr> {
    let listed = all
        .unwrap_or_default()
        .iter()
        .map(|address| address.ip.as_str());
    let mut texts: Vec<&str> = listed.collect();
    if texts.is_empty() {
        texts.extend(first);
    }
    texts
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .map(|ip: IpAddr| ip.to_canonical())
        .collect()
}

#[cfg(test)]
mod tests;
