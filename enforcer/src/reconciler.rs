//! The loop between the world and the state machine: event or deadline in, actions out, outcomes
//! back. No decision is made here.

mod calls;
mod duty;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portmapping_enforcer_core::{Action, NodeState, PortKey, SandboxNews, Status};
use portmapping_shared::{Plan, PodUid};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::hold::Keeper;
use crate::metrics::Metrics;
use crate::pods::PodNews;
use crate::publish::Publisher;
use portmapping_dataplane::{Dataplane, Observed};
use portmapping_keeper::wire::Duty;

pub use duty::follow as follow_duty;

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
    Reinstated,
}

/// What the loop talks to.
pub struct Drivers {
    /// Holds ports; one question at a time.
    pub keeper: Arc<tokio::sync::Mutex<Keeper>>,
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
    pub pods: mpsc::Receiver<PodNews>,
    /// Whether this enforcer's keeper still answers for the node.
    pub duty: watch::Receiver<Duty>,
    /// Changes whenever the keeper had to be found again.
    pub keeper_lost: watch::Receiver<u64>,
    /// What the container runtime's results say of sandboxes.
    pub sandboxes: mpsc::Receiver<SandboxNews>,
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
enum Done {
    Keeper(Vec<KeeperAnswer>),
    Programmed(Plan, Result<(), String>),
    Observed {
        /// Changes begun when the reading began.
        before: u64,
        /// None if it failed; the next check tries again.
        observed: Option<Observed>,
    },
    Published(PodUid, bool),
    Nothing,
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
    tasks: JoinSet<Done>,
    publications: Arc<Semaphore>,
    events: Arc<Semaphore>,
    started: Instant,
    observing: bool,
    changing: bool,
    /// When rules were found altered that are not back yet.
    damaged_since: Option<Instant>,
    /// Asked to look while a look or a change was under way: look once more after it.
    look_again: bool,
    /// Changes begun so far: a reading that one of them overlapped says nothing.
    changes: u64,
    mappings_seen: Option<usize>,
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
            look_again: false,
            changes: 0,
            mappings_seen: None,
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
            let duty = *inputs.duty.borrow_and_update();
            match duty {
                Duty::Active => self.act(),
                Duty::Frozen => {}
                Duty::Retired => {
                    tracing::info!(
                        "another enforcer has this node's ports now; waiting for the end"
                    );
                    return wait_retired(&mut inputs.duty, &token).await;
                }
            }
            let deadline = self.state.next_deadline();
            // each arm only takes a value out of a queue: all are cancel-safe
            tokio::select! {
                () = token.cancelled() => return Ok(()),
                news = inputs.pods.recv() => {
                    self.take_news(news.ok_or(ReconcileError::NoPods)?, &mut on_listed);
                    for _ in 1..BATCH {
                        let Ok(news) = inputs.pods.try_recv() else { break };
                        self.take_news(news, &mut on_listed);
                    }
                }
                // a closed queue only ends this arm: without results status.podIP is all there is
                Some(news) = inputs.sandboxes.recv() => {
                    self.take_sandbox(news);
                    for _ in 1..BATCH {
                        let Ok(news) = inputs.sandboxes.try_recv() else { break };
                        self.take_sandbox(news);
                    }
                }
                Ok(()) = inputs.damage_hints.changed() => self.observe(),
                Some(done) = self.tasks.join_next() => {
                    self.take_outcome(done.map_err(ReconcileError::Task)?);
                }
                Ok(()) = inputs.duty.changed() => {}
                Ok(()) = inputs.keeper_lost.changed() => self.list_keeper(),
                Some(question) = inputs.questions.recv() => {
                    // whoever asked may have left
                    let _ = question.send(self.state.status());
                }
                _ = check.tick() => self.observe(),
                () = sleep_until(started, deadline), if deadline.is_some() && duty == Duty::Active => {
                    self.state.tick(self.now());
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn take_news(&mut self, news: PodNews, on_listed: &mut Option<Box<dyn FnOnce() + Send>>) {
        let now = self.now();
        match news {
            PodNews::Applied(facts) => self.state.pod_applied(now, *facts),
            PodNews::Gone(uid) => self.state.pod_gone(now, &uid),
            PodNews::Relisted(living) => {
                self.state.relisted(now, &living);
                if let Some(on_listed) = on_listed.take() {
                    on_listed();
                }
            }
        }
    }

    fn take_sandbox(&mut self, news: SandboxNews) {
        let now = self.now();
        tracing::debug!(?news, "of a sandbox");
        match news {
            SandboxNews::Up(sandbox) => self.state.sandbox_up(now, sandbox),
            SandboxNews::Down(id) => self.state.sandbox_down(now, &id),
            SandboxNews::Listed(sandboxes) => self.state.sandboxes_listed(now, sandboxes),
        }
    }

    fn act(&mut self) {
        for action in self.state.take_actions() {
            match action {
                Action::Hold(keys) => self.hold(keys),
                Action::Release(keys) => self.release(keys),
                Action::Program(plan) => self.program(plan),
                Action::Publish(publication) => self.publish(publication),
                Action::Event(event) => self.tell(event),
            }
        }
    }

    fn take_outcome(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Keeper(answers) => {
                for answer in answers {
                    match answer {
                        KeeperAnswer::Held(outcomes) => self.state.held(now, outcomes),
                        KeeperAnswer::Released(keys) => self.state.released(now, &keys),
                        KeeperAnswer::Failed(keys) => self.state.keeper_failed(now, &keys),
                        KeeperAnswer::Listed(held) => self.state.keeper_listed(now, &held),
                    }
                }
            }
            Done::Programmed(plan, outcome) => {
                self.changing = false;
                if outcome.is_ok()
                    && let Some(found) = self.damaged_since.take()
                {
                    self.drivers.metrics.repaired();
                    let ms = u64::try_from(found.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(ms, "altered rules are back");
                }
                self.state.programmed(now, &plan, outcome);
                self.show();
                self.look_once_more();
            }
            Done::Observed { before, observed } => {
                self.observing = false;
                match observed {
                    Some(observed) if before == self.changes => {
                        self.compare(&observed);
                        self.state.observed(now, observed.mappings, observed.intact);
                    }
                    Some(_) => self.look_again = true,
                    None => {}
                }
                self.show();
                self.look_once_more();
            }
            Done::Published(uid, taken) => {
                self.state.published(now, &uid, taken);
            }
            Done::Nothing => {}
        }
    }

    fn look_once_more(&mut self) {
        if std::mem::take(&mut self.look_again) {
            self.observe();
        }
    }

    /// Logs and counts what somebody did to our rules.
    fn compare(&mut self, observed: &Observed) {
        let believed = self.mappings_seen.unwrap_or(observed.mappings.len());
        if !observed.intact || observed.mappings.len() != believed {
            self.drivers.metrics.damage();
            self.damaged_since.get_or_insert_with(Instant::now);
            tracing::warn!(
                intact = observed.intact,
                found = observed.mappings.len(),
                expected = believed,
                "rules of ours were altered by somebody else; putting them back"
            );
        }
    }

    fn show(&mut self) {
        let counts = self.state.counts();
        self.mappings_seen = Some(counts.mappings);
        self.drivers
            .metrics
            .show(&counts, self.started.elapsed().as_secs_f64());
    }
}

/// What a retired enforcer knows of the kernel is out of date: if its keeper is on duty again (a
/// new version that died, say), only a fresh start can go on.
async fn wait_retired(
    duty: &mut watch::Receiver<Duty>,
    token: &CancellationToken,
) -> Result<(), ReconcileError> {
    tokio::select! {
        () = token.cancelled() => Ok(()),
        active = duty.wait_for(|duty| *duty == Duty::Active) => match active {
            Ok(_) => Err(ReconcileError::Reinstated),
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
