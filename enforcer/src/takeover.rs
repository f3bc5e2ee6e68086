//! The start of an enforcer next to one that acts: it takes the node over once it is able to act.

use std::collections::BTreeMap;
use std::time::Duration;

use portmapping_enforcer_core::{PodFacts, Sandbox, SandboxUpdate};
use portmapping_keeper::wire::KeeperRole;
use portmapping_runtime::ReadyHandle;
use portmapping_runtime::deadline::chain;
use portmapping_shared::PodUid;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::keeper_client::KeeperClient;
use crate::pods::PodUpdate;

/// Pause between two requests for the takeover.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Pause between two looks at the permission.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
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

#[cfg(test)]
mod tests;
