//! Carries actions out: each is a task, whose result goes back to the loop.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use portmapping_enforcer_core::{PodEvent, Publication, PublishOutcome, RuleError};
use portmapping_runtime::deadline::chain;
use portmapping_shared::contract::EVENT_ROUTING_UNKNOWN;
use portmapping_shared::{Plan, PodRef};

use super::{Finished, Reconciler};
use crate::masquerade;
use crate::pods::running_at;
use crate::publish::PublishError;
use crate::rules_lock::TakenOver;

/// How late the keeper may say that another enforcer has taken the node over.
const ROLE_DELAY: Duration = Duration::from_secs(1);

impl Reconciler {
    pub(super) fn program(&mut self, plan: Plan) {
        let dataplane = Arc::clone(&self.drivers.dataplane);
        let rules = Arc::clone(&self.drivers.rules);
        let metrics = self.drivers.metrics.clone();
        self.changing = true;
        self.changes += 1;
        self.tasks.spawn_blocking(move || {
            let begun = Instant::now();
            tracing::debug!(create = plan.to_create.len(), "changing rules");
            let mut dataplane = dataplane.lock();
            let outcome = match rules.begin() {
                Ok(_under_way) => dataplane.apply(&plan).map_err(|error| RuleError {
                    not_permitted: error.is_not_permitted(),
                    message: chain(&error),
                }),
                Err(TakenOver) => return taken_over(),
            };
            drop(dataplane);
            let took = begun.elapsed();
            metrics.record_call("apply", outcome.is_ok());
            metrics.record_apply(took.as_secs_f64());
            match &outcome {
                Ok(()) => tracing::info!(
                    created = plan.to_create.len(),
                    removed = plan.to_remove.len(),
                    unchanged = plan.unchanged,
                    ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                    "rules changed"
                ),
                Err(error) => {
                    tracing::error!(
                        error = error.message,
                        "cannot change the rules; trying again"
                    );
                }
            }
            Finished::Programmed(plan, outcome)
        });
    }

    /// Clears the connections that a change of the rules left behind, while the next change may run.
    pub(super) fn clear_stale_flows(&mut self) {
        let flows = self.drivers.stale_flows.clone();
        let metrics = self.drivers.metrics.clone();
        self.tasks.spawn_blocking(move || {
            metrics.record_clear_failures(flows.clear());
            Finished::Nothing
        });
    }

    /// Reads the rules back, one read at a time. Asked again during a read or a change, it reads once
    /// more after it.
    pub(super) fn observe(&mut self) {
        self.state.read_asked(self.now());
        if self.observing || self.changing {
            self.read_again = true;
            return;
        }
        self.observing = true;
        let before = self.changes;
        let dataplane = Arc::clone(&self.drivers.dataplane);
        let rules = Arc::clone(&self.drivers.rules);
        let metrics = self.drivers.metrics.clone();
        let node_addresses = self.node_addresses.take();
        let automatic = self.drivers.backend.automatic;
        let masquerade = self.decide_masquerade();
        let static_ports = self.state.static_ports();
        self.tasks.spawn_blocking(move || {
            let begun = Instant::now();
            let mut dataplane = dataplane.lock();
            if let Some(addresses) = node_addresses {
                dataplane.set_host_addresses(&addresses);
            }
            dataplane.set_masquerade(masquerade);
            if let Some(ports) = static_ports {
                dataplane.set_static_ports(&ports);
            }
            // a read changes the rules too, for new addresses of the node
            let under_way = match rules.begin() {
                Ok(under_way) => under_way,
                Err(TakenOver) => return taken_over(),
            };
            let observed = dataplane.observe();
            drop(under_way);
            drop(dataplane);
            let us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(us, "rules read back");
            metrics.record_call("observe", observed.is_ok());
            let observed = match observed {
                Ok(observed) if automatic && observed.unprintable.is_some() => {
                    return Finished::BackendLost(observed.unprintable.unwrap_or_default());
                }
                Ok(observed) => Some(observed),
                Err(error) if automatic && error.is_unprintable() => {
                    return Finished::BackendLost(error.to_string());
                }
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "cannot read the rules back; the next check tries again"
                    );
                    None
                }
            };
            Finished::Observed { before, observed }
        });
    }

    /// Called after the next change has started: a read before it would make it wait, and would then
    /// be of no use. Where that would go on for too long, core starts no change.
    pub(super) fn read_again_if_asked(&mut self) {
        if std::mem::take(&mut self.read_again) {
            self.observe();
        }
    }

    /// Decides whether connections are masqueraded. A new decision is logged; one that lacks what Cilium
    /// could say is also an event on the Node object.
    fn decide_masquerade(&mut self) -> bool {
        let decision = masquerade::decide(self.drivers.masquerade).after(self.masquerade.as_ref());
        let on = decision.on;
        if self.masquerade.as_ref() != Some(&decision) {
            if decision.is_unknown {
                tracing::warn!("{}", decision.reason);
                self.emit_on_node(EVENT_ROUTING_UNKNOWN, decision.reason.clone());
            } else {
                let masquerade = decision.on;
                tracing::info!(masquerade, reason = decision.reason, "masquerading decided");
            }
            self.masquerade = Some(decision);
        }
        on
    }

    pub(super) fn emit_on_node(&mut self, reason: &'static str, note: String) {
        let publisher = self.drivers.publisher.clone();
        self.write_event(async move { publisher.emit_on_node(reason, &note).await });
    }

    pub(super) fn publish(&mut self, publication: Publication) {
        let publisher = self.drivers.publisher.clone();
        let metrics = self.drivers.metrics.clone();
        let writes = Arc::clone(&self.publications);
        self.tasks.spawn(async move {
            let _permit = writes.acquire_owned().await;
            tracing::debug!(pod = %publication.pod, "publishing");
            let outcome = match publisher.publish(&publication).await {
                Ok(version) => {
                    metrics.record_call("publish", true);
                    // the text can have 16 KiB, and a user can have it written again and again
                    tracing::debug!(pod = %publication.pod, result = publication.wanted.annotation);
                    tracing::info!(
                        pod = %publication.pod,
                        uid = %publication.pod.uid,
                        mapped = publication.wanted.condition.as_ref().is_some_and(|c| c.status),
                        "published"
                    );
                    PublishOutcome::Written { version }
                }
                Err(error) if error.is_conflict() => {
                    metrics.record_conflict();
                    tracing::debug!(
                        pod = %publication.pod,
                        "the pod changed in the meantime; deciding again on its newest version"
                    );
                    PublishOutcome::Conflict
                }
                Err(error) => {
                    metrics.record_call("publish", false);
                    tracing::warn!(
                        error = chain(&error),
                        "cannot publish a result; trying again"
                    );
                    PublishOutcome::Failed
                }
            };
            Finished::Published(publication.pod.uid, outcome)
        });
    }

    /// Reads a pod whose CNI result was removed. A failed read confirms nothing; core asks again.
    pub(super) fn read_pod(&mut self, pod: PodRef, asked: Duration) {
        let client = self.drivers.client.clone();
        let metrics = self.drivers.metrics.clone();
        let reads = Arc::clone(&self.reads);
        self.tasks.spawn(async move {
            let _permit = reads.acquire_owned().await;
            let found = running_at(client, &pod).await;
            metrics.record_call("read_pod", found.is_ok());
            if let Err(error) = &found {
                tracing::warn!(error = chain(error), "the pod stays unmapped; trying again");
            }
            Finished::PodRead(pod.uid, asked, found.unwrap_or_default())
        });
    }

    pub(super) fn emit(&mut self, event: PodEvent) {
        let publisher = self.drivers.publisher.clone();
        self.write_event(async move { publisher.emit(&event).await });
    }

    /// Writes an event when one of the writes of events is free. Where too many wait for that it is dropped.
    fn write_event(
        &mut self,
        write: impl Future<Output = Result<(), PublishError>> + Send + 'static,
    ) {
        let metrics = self.drivers.metrics.clone();
        let Ok(place) = Arc::clone(&self.waiting_events).try_acquire_owned() else {
            metrics.record_call("event", false);
            tracing::debug!("too many events wait to be written; one is dropped");
            return;
        };
        let events = Arc::clone(&self.events);
        self.tasks.spawn(async move {
            let _place = place;
            let _permit = events.acquire_owned().await;
            let outcome = write.await;
            metrics.record_call("event", outcome.is_ok());
            if let Err(error) = outcome {
                tracing::warn!(
                    error = chain(&error),
                    "cannot record an event; it is dropped"
                );
            }
            Finished::Nothing
        });
    }
}

/// Waits until the keeper has had time to say that another enforcer has taken the node over. It says so
/// within milliseconds, unless that enforcer has ended since.
fn taken_over() -> Finished {
    tracing::info!(
        "another enforcer has taken this node over: a change of the rules does not begin"
    );
    thread::sleep(ROLE_DELAY);
    Finished::TakenOver
}
