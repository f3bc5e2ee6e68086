//! The loop around the state machine of the core crate: updates and deadlines in, actions out,
//! results back. It makes no decisions.

mod calls;
mod keeper;
mod replies;
mod report;
mod role;

pub(crate) use report::closed;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use parking_lot::Mutex;
use portmapping_enforcer_core::{
    Action, NodeState, PublishOutcome, RuleError, SandboxUpdate, Status,
};
use portmapping_shared::{Mapping, Plan, PodUid};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use keeper::KeeperAnswer;

use crate::keeper_client::KeeperClient;
use crate::masquerade::{Decision, MasqueradeChoice};
use crate::metrics::Metrics;
use crate::pods::PodUpdate;
use crate::publish::Publisher;
use crate::rules_lock::RulesLock;
use portmapping_dataplane::detect::Chosen;
use portmapping_dataplane::{Dataplane, Observed, Obstacle, StaleFlows};
use portmapping_keeper::wire::KeeperRole;

/// Patches of pods in flight at once. More wait; none is lost.
const MAX_PUBLICATIONS: usize = 16;
/// Events in flight at once. More wait; no patch waits for an event.
const MAX_EVENTS: usize = 4;
/// Events that are being written or wait for it. An event has a few kB.
const MAX_WAITING_EVENTS: usize = 1024;
/// Reads of pods in flight at once. More wait; each is short.
const MAX_READS: usize = 4;
/// Updates handled before actions are carried out, so that a burst becomes one change of the rules.
const BATCH: usize = 64;
/// First check of the rules after the start. After a handover an earlier enforcer of another version may
/// still finish a change, so it comes soon.
const FIRST_CHECK: Duration = Duration::from_secs(1);

/// A request for the current state, answered by the loop.
pub(crate) type StateRequest = oneshot::Sender<(Status, Chosen, Option<Decision>)>;

/// Why the loop ended before it was cancelled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// A task panicked.
    #[error("a task of the reconciler panicked")]
    Task(#[source] JoinError),
    /// The watch on pods ended.
    #[error("the watch on the node's pods ended")]
    NoPods,
    /// The enforcer that had taken the node over ended.
    #[error(
        "the successor ended and the keeper is active again: starting over, to read the kernel and the \
         keeper again"
    )]
    RoleReturned,
    /// The chosen iptables stopped working.
    #[error("iptables cannot be used any more: starting over, to choose the backend again ({0})")]
    BackendLost(String),
}

/// What the loop calls.
pub(crate) struct Drivers {
    /// Holds ports; one request at a time.
    pub keeper: Arc<tokio::sync::Mutex<KeeperClient>>,
    /// The packet filter; one change at a time.
    pub dataplane: Arc<Mutex<Box<dyn Dataplane>>>,
    /// The right to change its rules.
    pub rules: Arc<RulesLock>,
    /// The backend of `dataplane`, and why it was chosen.
    pub backend: Chosen,
    /// Whether connections to mapped ports are masqueraded.
    pub masquerade: MasqueradeChoice,
    /// The connections that changes of the packet filter leave behind.
    pub stale_flows: StaleFlows,
    /// The API server.
    pub publisher: Publisher,
    /// The API server, for reads of single pods.
    pub client: Client,
    /// The counters and gauges.
    pub metrics: Metrics,
}

/// What the loop waits for.
pub(crate) struct Inputs {
    /// Updates that came before the loop.
    pub first_pods: Vec<PodUpdate>,
    /// Updates of the node's pods.
    pub pods: mpsc::Receiver<PodUpdate>,
    /// The role of this enforcer's keeper.
    pub role: watch::Receiver<KeeperRole>,
    /// Changes whenever the connection to the keeper was made or lost: it may hold nothing any more.
    pub keeper_changes: watch::Receiver<u64>,
    /// Updates of sandboxes, from the runtime's CNI results.
    pub sandboxes: mpsc::Receiver<SandboxUpdate>,
    /// Changes whenever another process may have altered our rules: they are read back at once.
    pub damage_hints: watch::Receiver<u64>,
    /// The addresses that the Node object names; None before it is read.
    pub node_addresses: watch::Receiver<Option<BTreeSet<IpAddr>>>,
    /// Requests for the state.
    pub state_requests: mpsc::Receiver<StateRequest>,
    /// How often the rules are read back.
    pub check_every: Duration,
    /// Called once, after the first complete list of pods.
    pub on_listed: Box<dyn FnOnce() + Send>,
}

/// The result of a finished call.
enum Finished {
    Keeper(Vec<KeeperAnswer>),
    Programmed(Plan, Result<(), RuleError>),
    Observed {
        /// Changes started before the read started.
        before: u64,
        /// None if it failed; the next check tries again.
        observed: Option<Observed>,
    },
    BackendLost(String),
    TakenOver,
    Published(PodUid, PublishOutcome),
    /// The addresses at which the pod runs, and when the read was asked for.
    PodRead(PodUid, Duration, Vec<IpAddr>),
    /// The mappings whose connections get no reply; None if they could not be read.
    Replies(Option<BTreeSet<Mapping>>),
    /// The keeper is to be asked for its list again.
    ListDue,
    Nothing,
}

/// The loop and its state.
#[expect(clippy::struct_excessive_bools, reason = "these are independent facts")]
pub(crate) struct Reconciler {
    state: NodeState,
    drivers: Drivers,
    tasks: JoinSet<Finished>,
    publications: Arc<Semaphore>,
    events: Arc<Semaphore>,
    waiting_events: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    started: Instant,
    observing: bool,
    reply_reads: replies::ReplyReads,
    changing: bool,
    /// The keeper could not be asked for its list, and will be asked again.
    list_waits: bool,
    /// When altered rules were found that are not repaired yet.
    damaged_since: Option<Instant>,
    /// A read was asked for during a read or a change: read once more after it.
    read_again: bool,
    /// What the Node object names, for the next read.
    node_addresses: Option<BTreeSet<IpAddr>>,
    /// Whether connections are masqueraded, as of the last read of the rules.
    masquerade: Option<Decision>,
    /// Changes started so far. A read during which a change started is not used.
    changes: u64,
    /// What may keep clients from mapped pods, as last reported.
    obstacles: Vec<Obstacle>,
    /// Mappings that the rules should have; None before the first count.
    expected_mappings: Option<usize>,
}

impl Reconciler {
    /// Returns a loop that continues from `state`. Times in the state count from `started`.
    #[must_use]
    pub(crate) fn new(state: NodeState, drivers: Drivers, started: Instant) -> Self {
        drivers.metrics.set_backend(&drivers.backend);
        Self {
            state,
            drivers,
            tasks: JoinSet::new(),
            publications: Arc::new(Semaphore::new(MAX_PUBLICATIONS)),
            events: Arc::new(Semaphore::new(MAX_EVENTS)),
            waiting_events: Arc::new(Semaphore::new(MAX_WAITING_EVENTS)),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            started,
            observing: false,
            reply_reads: replies::ReplyReads::default(),
            changing: false,
            list_waits: false,
            damaged_since: None,
            read_again: false,
            node_addresses: None,
            masquerade: None,
            changes: 0,
            obstacles: Vec::new(),
            expected_mappings: None,
        }
    }

    /// Runs until the token is cancelled. After a handover it stops writing and waits to be terminated.
    pub(crate) async fn run(
        mut self,
        mut inputs: Inputs,
        token: CancellationToken,
    ) -> Result<(), ReconcileError> {
        let mut check = tokio::time::interval_at(
            tokio::time::Instant::now() + FIRST_CHECK.min(inputs.check_every),
            inputs.check_every,
        );
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut on_listed = Some(inputs.on_listed);
        let started = self.started;
        for update in std::mem::take(&mut inputs.first_pods) {
            self.apply_pod_update(update, &mut on_listed);
        }
        loop {
            let is_told = inputs.role.has_changed().unwrap_or(false);
            let role = *inputs.role.borrow_and_update();
            match role {
                KeeperRole::Active => {
                    // it may have received ports of a keeper that had not answered before
                    if is_told {
                        self.list_keeper();
                    }
                    self.carry_out();
                    self.read_again_if_asked();
                }
                KeeperRole::Frozen => {}
                KeeperRole::Retired => {
                    tracing::info!(
                        "another enforcer has taken this node over; this one writes nothing more and waits to be \
                         terminated"
                    );
                    // calls under way must not write over what the successor writes
                    self.tasks.abort_all();
                    return role::wait_retired(&mut inputs.role, &token).await;
                }
            }
            let deadline = self.state.next_deadline();
            // every arm is cancel-safe: it only receives from a queue or waits
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                update = inputs.pods.recv() => {
                    let Some(update) = update else {
                        // at the end of the program the watch may end first
                        return if token.is_cancelled() { Ok(()) } else { Err(ReconcileError::NoPods) };
                    };
                    self.apply_pod_update(update, &mut on_listed);
                    for _ in 1..BATCH {
                        let Ok(update) = inputs.pods.try_recv() else { break };
                        self.apply_pod_update(update, &mut on_listed);
                    }
                }
                // a closed queue only disables this arm: pods are then mapped by status.podIP
                Some(update) = inputs.sandboxes.recv() => {
                    self.apply_sandbox_update(update);
                    for _ in 1..BATCH {
                        let Ok(update) = inputs.sandboxes.try_recv() else { break };
                        self.apply_sandbox_update(update);
                    }
                }
                Ok(()) = inputs.damage_hints.changed() => self.observe(),
                Ok(()) = inputs.node_addresses.changed() => {
                    self.node_addresses.clone_from(&inputs.node_addresses.borrow_and_update());
                    self.observe();
                }
                Some(finished) = self.tasks.join_next() => {
                    self.finish_call(finished.map_err(ReconcileError::Task)?)?;
                }
                // the next turn reads it
                Ok(()) = role::wait_for_word(&mut inputs.role) => {}
                Ok(()) = inputs.keeper_changes.changed() => self.list_keeper(),
                Some(request) = inputs.state_requests.recv() => {
                    // the client may have closed its connection
                    let backend = self.drivers.backend.clone();
                    let _ = request.send((self.state.status(), backend, self.masquerade.clone()));
                }
                _ = check.tick() => self.check(),
                () = sleep_until(started, deadline), if deadline.is_some() && role == KeeperRole::Active => {
                    self.state.tick(self.now());
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn apply_pod_update(
        &mut self,
        update: PodUpdate,
        on_listed: &mut Option<Box<dyn FnOnce() + Send>>,
    ) {
        let now = self.now();
        match update {
            PodUpdate::Applied(facts) => self.state.pod_applied(now, *facts),
            PodUpdate::Gone(uid) => self.state.pod_gone(now, &uid),
            PodUpdate::Relisted(living) => {
                self.state.relisted(now, &living);
                if let Some(on_listed) = on_listed.take() {
                    on_listed();
                }
            }
        }
    }

    fn apply_sandbox_update(&mut self, update: SandboxUpdate) {
        let now = self.now();
        tracing::debug!(?update, "a sandbox changed");
        match update {
            SandboxUpdate::Up(sandbox) => self.state.sandbox_up(now, sandbox),
            SandboxUpdate::Down(id) => self.state.sandbox_down(now, &id),
            SandboxUpdate::Listed(sandboxes) => self.state.sandboxes_listed(now, sandboxes),
        }
    }

    fn carry_out(&mut self) {
        for action in self.state.take_actions() {
            match action {
                Action::Hold(keys) => self.hold(keys),
                Action::Release(keys) => self.release(keys),
                Action::Program(plan) => self.program(plan),
                Action::Publish(publication) => self.publish(publication),
                Action::ReadPod { pod, asked } => self.read_pod(pod, asked),
                Action::Event(event) => self.emit(event),
            }
        }
    }

    fn finish_call(&mut self, finished: Finished) -> Result<(), ReconcileError> {
        let now = self.now();
        match finished {
            Finished::Keeper(answers) => self.end_keeper_call(now, answers),
            Finished::Programmed(plan, outcome) => {
                self.changing = false;
                self.clear_stale_flows();
                if outcome.is_ok()
                    && let Some(found) = self.damaged_since.take()
                {
                    self.drivers.metrics.record_repair();
                    let ms = u64::try_from(found.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(ms, "altered rules are repaired");
                }
                // what a change that failed left in the kernel is no damage by others
                let failed = outcome.is_err();
                self.state.programmed(now, &plan, outcome);
                self.update_metrics();
                if failed {
                    self.expected_mappings = None;
                    // one address family may have it
                    self.observe();
                }
            }
            Finished::Observed { before, observed } => self.end_read(now, before, observed),
            Finished::BackendLost(error) => return Err(ReconcileError::BackendLost(error)),
            Finished::TakenOver => return Err(ReconcileError::RoleReturned),
            Finished::Published(uid, outcome) => self.state.published(now, &uid, outcome),
            Finished::PodRead(uid, asked, running_at) => {
                self.state.pod_read(now, &uid, asked, &running_at);
            }
            Finished::Replies(silent) => self.end_reply_read(silent.as_ref()),
            Finished::ListDue => {
                self.list_waits = false;
                self.list_keeper();
            }
            Finished::Nothing => {}
        }
        Ok(())
    }

    fn update_metrics(&mut self) {
        let counts = self.state.counts();
        self.expected_mappings = Some(counts.mappings);
        self.drivers
            .metrics
            .update(&counts, self.started.elapsed().as_secs_f64());
    }
}

async fn sleep_until(started: Instant, deadline: Option<Duration>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until((started + deadline).into()).await;
    }
}
