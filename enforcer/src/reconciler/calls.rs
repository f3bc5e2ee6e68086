//! Carrying actions out: each becomes a task, and each task an outcome.

use std::sync::Arc;
use std::time::Instant;

use portmapping_enforcer_core::{PodEvent, PortKey, Publication};
use portmapping_runtime::deadline::chain;
use portmapping_shared::Plan;
use rustix::io::Errno;

use super::{Done, KeeperAnswer, Reconciler};
use crate::hold::{HoldError, Keeper};
use portmapping_keeper::wire::Outcome;

impl Reconciler {
    pub(super) fn hold(&mut self, keys: Vec<PortKey>) {
        let keeper = Arc::clone(&self.drivers.keeper);
        let metrics = self.drivers.metrics.clone();
        self.tasks.spawn(async move {
            let mut keeper = keeper.lock().await;
            let outcomes = keeper.hold(&keys).await;
            metrics.call("hold", outcomes.is_ok());
            Done::Keeper(match outcomes {
                Ok(outcomes) => sort_outcomes(keys.into_iter().zip(outcomes)),
                Err(error) => after_failure(&mut keeper, "hold", keys, &error).await,
            })
        });
    }

    pub(super) fn release(&mut self, keys: Vec<PortKey>) {
        let keeper = Arc::clone(&self.drivers.keeper);
        let metrics = self.drivers.metrics.clone();
        self.tasks.spawn(async move {
            let mut keeper = keeper.lock().await;
            let released = keeper.release(&keys).await;
            metrics.call("release", released.is_ok());
            Done::Keeper(match released {
                Ok(_) => vec![KeeperAnswer::Released(keys)],
                Err(error) => after_failure(&mut keeper, "release", keys, &error).await,
            })
        });
    }

    /// Asks a keeper that was lost from sight what it holds.
    pub(super) fn list_keeper(&mut self) {
        let keeper = Arc::clone(&self.drivers.keeper);
        self.tasks.spawn(async move {
            let mut keeper = keeper.lock().await;
            Done::Keeper(match keeper.list().await {
                Ok(held) => vec![KeeperAnswer::Listed(held)],
                Err(error) => after_failure(&mut keeper, "list", Vec::new(), &error).await,
            })
        });
    }

    pub(super) fn program(&mut self, plan: Plan) {
        let dataplane = Arc::clone(&self.drivers.dataplane);
        let metrics = self.drivers.metrics.clone();
        self.changing = true;
        self.changes += 1;
        self.tasks.spawn_blocking(move || {
            let begun = Instant::now();
            tracing::debug!(create = plan.to_create.len(), "changing rules");
            let mut dataplane = dataplane.lock();
            let failures = dataplane.clear_failures();
            let outcome = dataplane.apply(&plan);
            metrics.clear_failures(dataplane.clear_failures() - failures);
            drop(dataplane);
            let took = begun.elapsed();
            metrics.call("apply", outcome.is_ok());
            metrics.applied(took.as_secs_f64());
            let outcome = outcome.map_err(|error| chain(&error));
            match &outcome {
                Ok(()) => tracing::info!(
                    created = plan.to_create.len(),
                    removed = plan.to_remove.len(),
                    unchanged = plan.unchanged,
                    ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                    "rules changed"
                ),
                Err(error) => tracing::error!(error, "rules could not be changed; trying again"),
            }
            Done::Programmed(plan, outcome)
        });
    }

    /// Reads the kernel back, one reading at a time; asked meanwhile, it reads once more afterwards.
    /// No reading begins while a change is under way.
    pub(super) fn observe(&mut self) {
        if self.observing || self.changing {
            self.look_again = true;
            return;
        }
        self.observing = true;
        let before = self.changes;
        let dataplane = Arc::clone(&self.drivers.dataplane);
        let metrics = self.drivers.metrics.clone();
        self.tasks.spawn_blocking(move || {
            let begun = Instant::now();
            let observed = dataplane.lock().observe();
            let us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(us, "rules read back");
            metrics.call("observe", observed.is_ok());
            let observed = match observed {
                Ok(observed) => Some(observed),
                Err(error) => {
                    tracing::error!(error = chain(&error), "rules could not be read back");
                    None
                }
            };
            Done::Observed { before, observed }
        });
    }

    pub(super) fn publish(&mut self, publication: Publication) {
        let publisher = self.drivers.publisher.clone();
        let metrics = self.drivers.metrics.clone();
        let writes = Arc::clone(&self.publications);
        self.tasks.spawn(async move {
            let _turn = writes.acquire_owned().await;
            tracing::debug!(pod = %publication.pod, "publishing");
            let outcome = publisher.publish(&publication).await;
            metrics.call("publish", outcome.is_ok());
            if let Err(error) = &outcome {
                tracing::warn!(
                    error = chain(error),
                    "a result could not be published; trying again"
                );
            } else {
                tracing::info!(
                    pod = %publication.pod,
                    uid = %publication.pod.uid,
                    result = publication.wanted.annotation,
                    mapped = publication.wanted.condition.as_ref().is_some_and(|c| c.status),
                    "published"
                );
            }
            Done::Published(publication.pod.uid, outcome.is_ok())
        });
    }

    pub(super) fn tell(&mut self, event: PodEvent) {
        let publisher = self.drivers.publisher.clone();
        let metrics = self.drivers.metrics.clone();
        let events = Arc::clone(&self.events);
        self.tasks.spawn(async move {
            let _turn = events.acquire_owned().await;
            let outcome = publisher.tell(&event).await;
            metrics.call("event", outcome.is_ok());
            if let Err(error) = outcome {
                tracing::warn!(error = chain(&error), "an event was lost");
            }
            Done::Nothing
        });
    }
}

/// Only a port in use is the port's fault; anything else is the keeper's, and asked for again.
fn sort_outcomes(outcomes: impl Iterator<Item = (PortKey, Outcome)>) -> Vec<KeeperAnswer> {
    let in_use = Errno::ADDRINUSE.raw_os_error();
    let mut settled = Vec::new();
    let mut failed = Vec::new();
    for (key, outcome) in outcomes {
        match outcome {
            Outcome::Held | Outcome::HeldWithoutSocket => settled.push((key, Ok(()))),
            Outcome::Refused(errno) if errno.0 == in_use => {
                tracing::warn!(port = %key.1, protocol = %key.0, "another process has this host port");
                settled.push((key, Err(errno.to_string())));
            }
            Outcome::Refused(errno) => {
                tracing::error!(port = %key.1, protocol = %key.0, %errno, "a host port could not be bound");
                failed.push(key);
            }
        }
    }
    let mut answers = vec![KeeperAnswer::Held(settled)];
    if !failed.is_empty() {
        answers.push(KeeperAnswer::Failed(failed));
    }
    answers
}

/// A restarted keeper is asked what it holds; any other failure is waited out.
async fn after_failure(
    keeper: &mut Keeper,
    call: &'static str,
    keys: Vec<PortKey>,
    error: &HoldError,
) -> Vec<KeeperAnswer> {
    tracing::warn!(
        call,
        error = chain(error),
        "the keeper could not be asked; trying again"
    );
    let mut answers = vec![KeeperAnswer::Failed(keys)];
    if matches!(error, HoldError::Restarted { .. }) {
        match keeper.list().await {
            Ok(held) => answers.push(KeeperAnswer::Listed(held)),
            Err(error) => tracing::warn!(error = chain(&error), "the keeper could not be listed"),
        }
    }
    answers
}
