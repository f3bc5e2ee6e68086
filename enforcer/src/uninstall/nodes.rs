//! `enforcer uninstall-nodes`: runs `enforcer uninstall` on every node, after the chart was deleted.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ContainerState, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use portmapping_runtime::client::ApiServer;
use portmapping_runtime::deadline::chain;
use portmapping_runtime::within;
use tokio::time::{Instant, sleep};

use crate::args::UninstallNodesArgs;
use crate::conditions::{is_true, is_up, message};
use crate::listing::{list, slim_node, slim_pod};
use crate::runtime::runtime;

/// The `DaemonSet` of a living installation.
const ENFORCER: &str = "enforcer";
/// How long the nodes may take together.
const NODES_LIMIT: Duration = Duration::from_mins(2);
/// Between two reads of their state.
const POLL: Duration = Duration::from_secs(1);
/// Longest wait for one call.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Longest silence within a call.
const CALL_SILENCE: Duration = Duration::from_secs(15);
/// HTTP status of an object that exists already, and of one that does not exist.
const CONFLICT: u16 = 409;
const NOT_FOUND: u16 = 404;
/// How long an earlier run's object may take to go away.
const REPLACE_LIMIT: Duration = Duration::from_secs(30);

/// Runs `enforcer uninstall-nodes`.
pub fn uninstall_nodes(args: &UninstallNodesArgs) -> anyhow::Result<()> {
    let set: DaemonSet = serde_json::from_str(&args.daemon_set)
        .context("--daemon-set is not a DaemonSet in JSON")?;
    runtime()?.block_on(async {
        let client = ApiServer::in_cluster()?.client(CALL_SILENCE)?;
        clean(client, &set).await
    })
}

async fn clean(client: Client, set: &DaemonSet) -> anyhow::Result<()> {
    let sets: Api<DaemonSet> = Api::default_namespaced(client.clone());
    let enforcer = within(CALL_LIMIT, "GET daemonset enforcer", sets.get_opt(ENFORCER)).await?;
    if enforcer.is_some_and(|enforcer| enforcer.metadata.deletion_timestamp.is_none()) {
        tracing::info!(
            "portmapping is installed: the DaemonSet enforcer exists. Nothing is removed; this job is for the time \
             after helm uninstall"
        );
        return Ok(());
    }
    create(&sets, set).await?;
    let cleaned = wait(client, &sets, set).await;
    let (name, params) = (set.name_any(), DeleteParams::default());
    if let Err(error) = within(CALL_LIMIT, "DELETE daemonset", sets.delete(&name, &params)).await {
        tracing::warn!(
            error = chain(&error),
            name,
            "cannot delete the DaemonSet that cleaned the nodes; delete it"
        );
    }
    cleaned
}

/// Creates the `DaemonSet`. One that is there was left by a run that was interrupted, maybe of an earlier
/// installation: its pods say nothing of the rules that are on the nodes now, so it is replaced.
async fn create(sets: &Api<DaemonSet>, set: &DaemonSet) -> anyhow::Result<()> {
    let name = set.name_any();
    let (post, background) = (PostParams::default(), DeleteParams::background());
    let deadline = Instant::now() + REPLACE_LIMIT;
    loop {
        match within(CALL_LIMIT, "POST daemonset", sets.create(&post, set)).await {
            Err(error) if has_status(&error, CONFLICT) && Instant::now() < deadline => {}
            created => {
                created?;
                return Ok(());
            }
        }
        tracing::info!(
            name,
            "replacing the DaemonSet of a run that was interrupted"
        );
        match within(
            CALL_LIMIT,
            "DELETE daemonset",
            sets.delete(&name, &background),
        )
        .await
        {
            Err(error) if has_status(&error, NOT_FOUND) => {}
            deleted => drop(deleted?),
        }
        sleep(POLL).await;
    }
}

fn has_status(error: &portmapping_runtime::CallError<kube::Error>, code: u16) -> bool {
    use portmapping_runtime::CallError::Failed;
    matches!(error, Failed { source: kube::Error::Api(status), .. } if status.code == code)
}

/// Waits until every Ready node is clean; names those that are not.
async fn wait(client: Client, sets: &Api<DaemonSet>, set: &DaemonSet) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client);
    let own = ListParams::default().labels(&selector(set));
    let deadline = Instant::now() + NODES_LIMIT;
    loop {
        let read = async {
            let set = sets.get(&set.name_any()).await?;
            let pods = list(&pods, own.clone(), slim_pod).await?;
            let nodes = list(&nodes, ListParams::default(), slim_node).await?;
            Ok::<_, kube::Error>(Progress::of(&set, &pods, &nodes))
        };
        let progress = match within(CALL_LIMIT, "read the DaemonSet's pods", read).await {
            Ok(progress) if progress.pending.is_empty() => return progress.outcome(),
            Ok(progress) => progress,
            Err(error) => Progress {
                pending: vec![chain(&error)],
                ..Progress::default()
            },
        };
        if Instant::now() >= deadline {
            return progress.outcome();
        }
        sleep(POLL).await;
    }
}

/// The labels by which a `DaemonSet` finds its pods, as a list asks for them.
fn selector(set: &DaemonSet) -> String {
    let labels = set
        .spec
        .iter()
        .flat_map(|spec| spec.selector.match_labels.iter().flatten());
    let mut text = String::new();
    for (key, value) in labels {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{key}={value}");
    }
    text
}

/// How far the nodes are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Clean nodes.
    clean: usize,
    /// What is not clean yet, and why.
    pending: Vec<String>,
    /// Nodes that are not Ready: no kubelet starts a pod there.
    unreachable: Vec<String>,
}

impl Progress {
    fn of(set: &DaemonSet, pods: &[Pod], nodes: &[Node]) -> Self {
        let mut progress = Self::default();
        let status = set.status.clone().unwrap_or_default();
        if status.observed_generation < set.metadata.generation {
            let name = set.name_any();
            progress
                .pending
                .push(format!("the DaemonSet {name} is new"));
            return progress;
        }
        let wanted = usize::try_from(status.desired_number_scheduled).unwrap_or_default();
        // those of an interrupted run may still be there
        let is_own = |pod: &&Pod| {
            let mut owners = pod.owner_references().iter();
            owners.any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
        };
        let pods: Vec<&Pod> = pods.iter().filter(is_own).collect();
        if pods.len() < wanted {
            progress.pending.push(format!(
                "{} pods of the DaemonSet are not created (does the namespace permit host networks? kubectl label \
                 namespace {} pod-security.kubernetes.io/enforce=privileged --overwrite)",
                wanted - pods.len(),
                set.namespace().unwrap_or_default(),
            ));
        }
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let Some(node) = node else {
                let name = pod.name_any();
                progress
                    .pending
                    .push(format!("pod {name} is not scheduled"));
                continue;
            };
            if is_true(pod, "Ready") {
                progress.clean += 1;
            } else if nodes.iter().any(|it| it.name_any() == node && is_up(it)) {
                progress.pending.push(format!("{node}: {}", state(pod)));
            } else {
                progress.unreachable.push(node);
            }
        }
        progress
    }

    fn outcome(self) -> anyhow::Result<()> {
        let Self {
            clean,
            pending,
            unreachable,
        } = self;
        tracing::info!(nodes = clean, "removed portmapping from these nodes");
        let mut left = pending;
        left.extend(
            unreachable
                .into_iter()
                .map(|node| format!("{node}: the node is not Ready")),
        );
        if left.is_empty() {
            return Ok(());
        }
        bail!(
            "portmapping was not removed everywhere. Left out: {}. Rules stay there until the node restarts, or until \
             `enforcer uninstall` runs there",
            left.join("; ")
        );
    }
}

/// Why a pod of a Ready node is not Ready, in the words of its container.
fn state(pod: &Pod) -> String {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let Some(container) = containers.into_iter().flatten().next() else {
        return format!("its pod has not started: {}", message(pod));
    };
    let ended = |state: &Option<ContainerState>| {
        let terminated = state.as_ref()?.terminated.as_ref()?;
        let text = terminated.message.clone()?;
        Some(text.trim().to_owned())
    };
    let waiting = || {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref());
        Some(format!("{reason} {}", message.unwrap_or_default()))
    };
    ended(&container.state)
        .or_else(|| ended(&container.last_state))
        .or_else(waiting)
        .unwrap_or_else(|| "not clean yet: a keeper still answers there".to_owned())
}

#[cfg(test)]
mod tests;
