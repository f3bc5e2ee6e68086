//! The loop between the world and the state machine: event or deadline in, actions out, outcomes
//! back. No decision is made here.

mod calls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portmapping_enforcer_core::{Action, NodeState, PortKey, SandboxUpdate, Status};
use portmapping_shared::{Plan, PodUid};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::keeper_client::KeeperClient;
use crate::metrics::Metrics;
use crate::pods::PodUpdate;
use crate::publish::Publisher;
use portmapping_dataplane::{Dataplane, Observed};
use portmapping_keeper::wire::KeeperRole;

/// Results on their way to the API server at once; more wait, none is lost.
const MAX_PUBLICATIONS: usize = 16;
/// Events on their way; no result waits for one.
const MAX_EVENTS: usize = 4;
/// Pod events taken in before actions are carried out, so that a burst becomes one change set.
const BATCH: usize = 64;
/// After a handover the earlier enforcer may still finish a change it had begun: look again soon.
const FIRST_CHECK: Duration = Duration::from_secs(1);

/// A question for the current state, answered by the loop.
pub type StateQuestion = oneshot::Sender<Status>;

/// Why the loop ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A task of ours panicked.
    #[error("a task of the reconciler ended badly")]
    Task(#[source] JoinError),
    /// The watch on pods is gone.
    #[error("no more pod events can come")]
    NoPods,
    /// The enforcer that took the node over is gone again.
    #[error("this node's ports came back: starting afresh from what kernel and keeper have")]
    RoleReturned,
}

/// What the loop talks to.
pub struct Drivers {
    /// Holds ports; one question at a time.
    pub keeper: Arc<tokio::sync::Mutex<KeeperClient>>,
    /// The kernel's packet filter; one change at a time.
    pub dataplane: Arc<Mutex<Box<dyn Dataplane>>>,
    /// The API server.
    pub publisher: Publisher,
    /// Counts.
    pub metrics: Metrics,
}

/// What the loop listens to.
pub struct Inputs {
    /// The node's pods.
    pub pods: mpsc::Receiver<PodUpdate>,
    /// Whether this enforcer's keeper still answers for the node.
    pub role: watch::Receiver<KeeperRole>,
    /// Changes whenever the keeper had to be found again.
    pub keeper_lost: watch::Receiver<u64>,
    /// What the container runtime's results say of sandboxes.
    pub sandboxes: mpsc::Receiver<SandboxUpdate>,
    /// Changes whenever something may have altered our rules: they are read back at once.
    pub damage_hints: watch::Receiver<u64>,
    /// Questions for the state.
    pub questions: mpsc::Receiver<StateQuestion>,
    /// How often the kernel is read back.
    pub check_every: Duration,
    /// Called once, after the first complete list of pods.
    pub on_listed: Box<dyn FnOnce() + Send>,
}

/// A call that has come back.
enum Finished {
    Keeper(Vec<KeeperAnswer>),
    Programmed(Plan, Result<(), String>),
    Observed {
        /// Changes begun when the reading began.
        before: u64,
        observed: ReadBack,
    },
    Published(PodUid, bool),
    Nothing,
}

/// What a look at the kernel brought.
enum ReadBack {
    Complete(Observed),
    /// A change came in between.
    Outdated,
    /// It failed; the next check tries again.
    Failed,
}

/// What a call to the keeper has taught us; one call can teach several things.
enum KeeperAnswer {
    Held(Vec<(PortKey, Result<(), String>)>),
    Released(Vec<PortKey>),
    Failed(Vec<PortKey>),
    Listed(BTreeSet<PortKey>),
}

/// The loop and its state.
pub struct Reconciler {
    state: NodeState,
    drivers: Drivers,
    tasks: JoinSet<Finished>,
    publications: Arc<Semaphore>,
    events: Arc<Semaphore>,
    started: Instant,
    observing: bool,
    changing: bool,
    /// When rules were found altered that are not back yet.
    damaged_since: Option<Instant>,
    /// Asked to look while a look or a change was under way: look once more after it.
    read_again: bool,
    /// Changes begun so far: a reading that one of them overlapped says nothing.
    changes: u64,
    expected_mappings: Option<usize>,
}

impl Reconciler {
    /// A loop that goes on from `state`; time in the state counts from `started`.
    #[must_use]
    pub fn new(state: NodeState, drivers: Drivers, started: Instant) -> Self {
        Self {
            state,
            drivers,
            tasks: JoinSet::new(),
            publications: Arc::new(Semaphore::new(MAX_PUBLICATIONS)),
            events: Arc::new(Semaphore::new(MAX_EVENTS)),
            started,
            observing: false,
            changing: false,
            damaged_since: None,
            read_again: false,
            changes: 0,
            expected_mappings: None,
        }
    }

    /// Runs until the token is cancelled. An enforcer whose ports went to another one stops acting
    /// and waits for its end.
    pub async fn run(
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
        loop {
            let role = *inputs.role.borrow_and_update();
            match role {
                KeeperRole::Active => self.carry_out(),
                KeeperRole::Frozen => {}
                KeeperRole::Retired => {
                    tracing::info!(
                        "another enforcer has this node's ports now; waiting for the end"
                    );
                    return wait_retired(&mut inputs.role, &token).await;
                }
            }
            let deadline = self.state.next_deadline();
            // each arm only takes a value out of a queue: all are cancel-safe
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                news = inputs.pods.recv() => {
                    self.apply_pod_update(news.ok_or(ReconcileError::NoPods)?, &mut on_listed);
                    for _ in 1..BATCH {
                        let Ok(news) = inputs.pods.try_recv() else { break };
                        self.apply_pod_update(news, &mut on_listed);
                    }
                }
                // a closed queue only ends this arm: without results status.podIP is all there is
                Some(news) = inputs.sandboxes.recv() => {
                    self.apply_sandbox_update(news);
                    for _ in 1..BATCH {
                        let Ok(news) = inputs.sandboxes.try_recv() else { break };
                        self.apply_sandbox_update(news);
                    }
                }
                Ok(()) = inputs.damage_hints.changed() => self.observe(),
                Some(finished) = self.tasks.join_next() => {
                    self.finish_call(finished.map_err(ReconcileError::Task)?);
                }
                Ok(()) = inputs.role.changed() => {}
                Ok(()) = inputs.keeper_lost.changed() => self.list_keeper(),
                Some(question) = inputs.questions.recv() => {
                    // whoever asked may have left
                    let _ = question.send(self.state.status());
                }
                _ = check.tick() => self.observe(),
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
        news: PodUpdate,
        on_listed: &mut Option<Box<dyn FnOnce() + Send>>,
    ) {
        let now = self.now();
        match news {
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

    fn apply_sandbox_update(&mut self, news: SandboxUpdate) {
        let now = self.now();
        tracing::debug!(?news, "of a sandbox");
        match news {
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
                Action::Event(event) => self.emit(event),
            }
        }
    }

    fn finish_call(&mut self, finished: Finished) {
        let now = self.now();
        match finished {
            Finished::Keeper(answers) => {
                for answer in answers {
                    match answer {
                        KeeperAnswer::Held(outcomes) => self.state.held(now, outcomes),
                        KeeperAnswer::Released(keys) => self.state.released(now, &keys),
                        KeeperAnswer::Failed(keys) => self.state.keeper_failed(now, &keys),
                        KeeperAnswer::Listed(held) => self.state.keeper_listed(now, &held),
                    }
                }
            }
            Finished::Programmed(plan, outcome) => {
                self.changing = false;
                if outcome.is_ok()
                    && let Some(found) = self.damaged_since.take()
                {
                    self.drivers.metrics.record_repair();
                    let ms = u64::try_from(found.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(ms, "altered rules are back");
                }
                self.state.programmed(now, &plan, outcome);
                self.update_metrics();
                self.read_again_if_asked();
            }
            Finished::Observed { before, observed } => {
                self.observing = false;
                match observed {
                    ReadBack::Complete(observed) if before == self.changes => {
                        self.report_damage(&observed);
                        self.state.observed(now, observed.mappings, observed.intact);
                    }
                    ReadBack::Complete(_) | ReadBack::Outdated => self.read_again = true,
                    ReadBack::Failed => {}
                }
                self.update_metrics();
                self.read_again_if_asked();
            }
            Finished::Published(uid, taken) => {
                self.state.published(now, &uid, taken);
            }
            Finished::Nothing => {}
        }
    }

    fn read_again_if_asked(&mut self) {
        if std::mem::take(&mut self.read_again) {
            self.observe();
        }
    }

    /// Logs and counts what somebody did to our rules.
    fn report_damage(&mut self, observed: &Observed) {
        let believed = self.expected_mappings.unwrap_or(observed.mappings.len());
        if !observed.intact || observed.mappings.len() != believed {
            self.drivers.metrics.record_damage();
            self.damaged_since.get_or_insert_with(Instant::now);
            tracing::warn!(
                intact = observed.intact,
                found = observed.mappings.len(),
                expected = believed,
                "rules of ours were altered by somebody else; putting them back"
            );
        }
    }

    fn update_metrics(&mut self) {
        let counts = self.state.counts();
        self.expected_mappings = Some(counts.mappings);
        self.drivers
            .metrics
            .update(&counts, self.started.elapsed().as_secs_f64());
    }
}

/// What a retired enforcer knows of the kernel is out of date: if its keeper is on role again (a
/// new version that died, say), only a fresh start can go on.
async fn wait_retired(
    role: &mut watch::Receiver<KeeperRole>,
    token: &CancellationToken,
) -> Result<(), ReconcileError> {
    tokio::select! {
        () = token.cancelled() => Ok(()),
        active = role.wait_for(|role| *role == KeeperRole::Active) => match active {
            Ok(_) => Err(ReconcileError::RoleReturned),
            // nobody follows the keeper any more: the program is ending
            Err(_) => Ok(()),
        },
    }
}

async fn sleep_until(started: Instant, deadline: Option<Duration>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until((started + deadline).into()).await;
    }
}
