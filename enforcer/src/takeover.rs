//! The start of an enforcer next to one that acts: it takes the node over once it is able to act. And its end:
//! it tells the keeper whether another one comes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::api::{Api, ListParams};
use portmapping_enforcer_core::{PodFacts, Sandbox, SandboxUpdate};
use portmapping_keeper::wire::KeeperRole;
use portmapping_runtime::ReadyHandle;
use portmapping_runtime::client::ApiServer;
use portmapping_runtime::deadline::chain;
use portmapping_shared::PodUid;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::args::RunConfig;
use crate::keeper_client::KeeperClient;
use crate::pods::{PodUpdate, SlimPod};

/// Pause between two requests for the takeover.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Pause between two looks at the permission.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long an ending enforcer may take to tell its keeper whether another one comes.
const WORD_LIMIT: Duration = Duration::from_secs(2);
/// The enforcer's pods, in the namespace of this one.
const ENFORCERS: &str = "app.kubernetes.io/name=portmapping,app.kubernetes.io/component=enforcer";
/// How long a start waits for the list of the runtime's results. It comes within milliseconds, unless the
/// directory does not exist.
const FIRST_RESULTS: Duration = Duration::from_millis(500);

/// Returns the keeper's role as soon as it is known: active, or retired.
pub(crate) async fn settled_role(role: &mut watch::Receiver<KeeperRole>) -> KeeperRole {
    let settled = role.wait_for(|role| *role != KeeperRole::Frozen).await;
    // the task that follows the role ended: the program is terminating
    settled.map_or(KeeperRole::Retired, |role| *role)
}

/// Waits until the keeper is active: it asks for that once the first complete list of pods has come and
/// the API server accepts results from this enforcer. The keeper also becomes active when the other enforcer
/// ends. Returns the pods seen in the meantime.
pub(crate) async fn await_turn(
    keeper: &mut KeeperClient,
    role: &mut watch::Receiver<KeeperRole>,
    pods: &mut mpsc::Receiver<PodUpdate>,
    permission: Option<&ReadyHandle>,
) -> Vec<PodUpdate> {
    tracing::info!(
        "another enforcer is on duty on this node; this one takes over when it has listed the pods and may \
         publish results"
    );
    let mut seen = SeenPods::default();
    let mut ask = tokio::time::interval(ASK_AGAIN);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_able = seen.listed && permission.is_none_or(ReadyHandle::is_ready);
        // every arm is cancel-safe: it only receives or waits
        tokio::select! {
            _ = role.wait_for(|role| *role == KeeperRole::Active) => break,
            Some(update) = pods.recv() => seen.apply(update),
            () = tokio::time::sleep(LOOK_AGAIN), if seen.listed && !is_able => {}
            _ = ask.tick(), if is_able => match keeper.take_over().await {
                Ok(KeeperRole::Active) => tracing::info!("this enforcer has taken the node over"),
                Ok(_) => tracing::info!("another keeper takes over at the same time; asking again"),
                Err(error) => tracing::error!(
                    error = chain(&error),
                    "cannot take the node over; asking again"
                ),
            },
        }
    }
    seen.into_updates()
}

/// Returns the sandboxes that the runtime's results name; none if the directory does not exist. They are
/// needed before the first pods: a pod whose address only its result names, because the kubelet reports it
/// later, would lose its rules until the list comes.
pub(crate) async fn first_results(sandboxes: &mut mpsc::Receiver<SandboxUpdate>) -> Vec<Sandbox> {
    match tokio::time::timeout(FIRST_RESULTS, sandboxes.recv()).await {
        Ok(Some(SandboxUpdate::Listed(all))) => all,
        // the list comes first
        _ => Vec::new(),
    }
}

/// What an enforcer needs at its end.
pub(crate) struct End {
    node: String,
    own_pod: Option<String>,
    keeper_socket: PathBuf,
}

impl End {
    pub(crate) fn of(config: &RunConfig) -> Self {
        Self {
            node: config.node.clone(),
            own_pod: config.pod_name.clone(),
            keeper_socket: config.keeper_socket.clone(),
        }
    }

    /// Tells the keeper that no other enforcer comes, if the node has no other enforcer's pod. In a rolling
    /// update the next pod exists before this one is deleted. After `kubectl delete pod`, and without a surge,
    /// it is created only once this one is gone, keeper included.
    pub(crate) async fn tell_keeper(&self) {
        let Some(own_pod) = &self.own_pod else { return };
        let told = tokio::time::timeout(WORD_LIMIT, async {
            if !self.has_next(own_pod).await? {
                let mut keeper = KeeperClient::connect(&self.keeper_socket, WORD_LIMIT).await?;
                keeper.expect_no_successor().await?;
            }
            anyhow::Ok(())
        });
        let told = told.await.context("no answer in time").flatten();
        if let Err(error) = told {
            tracing::info!("the keeper waits for a successor, which may not come: {error:#}");
        }
    }

    /// Whether the node has another enforcer's pod that is not about to end.
    async fn has_next(&self, own_pod: &str) -> anyhow::Result<bool> {
        let pods: Api<SlimPod> =
            Api::default_namespaced(ApiServer::in_cluster()?.client(WORD_LIMIT)?);
        let params = ListParams::default()
            .labels(ENFORCERS)
            .fields(&format!("spec.nodeName={}", self.node));
        let pods = pods.list_metadata(&params).await?;
        Ok(pods.items.iter().any(|pod| {
            let meta = &pod.metadata;
            meta.name.as_deref() != Some(own_pod) && meta.deletion_timestamp.is_none()
        }))
    }
}

/// The pods of the node, as many as the state has later.
#[derive(Default)]
struct SeenPods {
    pods: BTreeMap<PodUid, Box<PodFacts>>,
    /// Whether there was a complete list.
    listed: bool,
}

impl SeenPods {
    fn apply(&mut self, update: PodUpdate) {
        match update {
            PodUpdate::Applied(facts) => {
                self.pods.insert(facts.pod.uid.clone(), facts);
            }
            PodUpdate::Gone(uid) => {
                self.pods.remove(&uid);
            }
            PodUpdate::Relisted(living) => {
                self.pods.retain(|uid, _| living.contains(uid));
                self.listed = true;
            }
        }
    }

    /// Returns updates that say the same.
    fn into_updates(self) -> Vec<PodUpdate> {
        let living = self.pods.keys().cloned().collect();
        let mut updates: Vec<_> = self.pods.into_values().map(PodUpdate::Applied).collect();
        updates.extend(self.listed.then_some(PodUpdate::Relisted(living)));
        updates
    }
}
