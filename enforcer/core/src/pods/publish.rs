//! What the API must say about a pod, and the one write that makes it say so.

use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::contract::{CONDITION, REASON_MAPPED, REASON_RELEASED};
use portmapping_shared::{Backoff, InvalidRequest, PortRequest, ResultEntry};

use super::facts::{PodFacts, Want};
use super::result::describe_port;
use super::state::{PodState, Progress};
use super::unmapped::Refusal;
use crate::action::{Condition, EventKind, Publication, PublishOutcome, Record};

/// Waits between attempts to write one pod.
const RETRY: Backoff = Backoff {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(30),
};
/// Versions remembered as older than our last write; a watch is never that many writes behind.
const MAX_OUTDATED: usize = 8;
/// Longest condition message and event note, in bytes (events.k8s.io/v1 allows 1 kB).
const MESSAGE_BYTES: usize = 1000;
/// Added for a pod that was annotated while it ran, or created while the webhook was not there.
const UNGATED: &str = " (no readiness gate: Ready did not wait for this)";

impl PodState {
    /// The API server answered a publication. Returns the event to emit.
    pub(crate) fn published(
        &mut self,
        now: Duration,
        outcome: PublishOutcome,
    ) -> Option<(EventKind, String)> {
        let publish = &mut self.publish;
        let publication = publish.in_flight.take()?;
        let facts = self.facts.as_mut()?;
        // the watch may have shown a newer version while the answer was on its way
        let newest = facts.version == publication.version;
        let version = match outcome {
            PublishOutcome::Written { version } => version,
            PublishOutcome::Conflict if !newest => return None,
            PublishOutcome::Conflict | PublishOutcome::Failed => {
                publish.conflicted = outcome == PublishOutcome::Conflict;
                publish.retry_at = Some(now + RETRY.after(publish.failures.saturating_add(1), 0.0));
                publish.failures += 1;
                return None;
            }
        };
        publish.retry_at = None;
        publish.failures = 0;
        if newest {
            facts.record = publication.wanted.clone();
            if version != publication.version {
                publish.outdated.push_back(publication.version);
                facts.version = version;
            }
            if publish.outdated.len() > MAX_OUTDATED {
                publish.outdated.pop_front();
            }
        }
        self.announce(&publication.wanted)
    }

    /// Records the write that is asked for now, if there is one.
    pub(crate) fn publishing(&mut self, now: Duration, due: Option<&Publication>) {
        let publish = &mut self.publish;
        // a write is asked for now, or the wait is over
        publish.retry_at.take_if(|at| due.is_some() || *at <= now);
        self.contest.end_wait(now);
        publish.quiet_until.take_if(|at| *at <= now);
        if let Some(due) = due {
            if due.wanted.condition.as_ref().is_some_and(|c| c.status) {
                self.contest.publishing(now);
            }
            publish.in_flight = Some(due.clone());
            if let Some(annotation) = &due.wanted.annotation
                && annotation::classify(annotation) == Value::Result
            {
                self.forgery.record_written(annotation.clone());
            }
        }
    }

    /// The write that is due.
    pub(crate) fn due_publication(
        &self,
        now: Duration,
        progress: &Progress<'_>,
    ) -> Option<Publication> {
        let publish = &self.publish;
        if publish.in_flight.is_some() || publish.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let facts = self.facts.as_ref()?;
        let wanted = self.wanted_record(facts, progress)?;
        let gone = publish.quiet_until.is_some_and(|at| now < at);
        // only the annotation is to be restored, and another controller will replace it again
        let restored = Record {
            annotation: facts.record.annotation.clone(),
            ..wanted.clone()
        };
        let waits = self.contest.restore_at.is_some_and(|at| now < at) && restored == facts.record;
        (wanted != facts.record && !gone && !waits).then(|| Publication {
            pod: facts.pod.clone(),
            version: facts.version.clone(),
            current: facts.record.clone(),
            wanted,
        })
    }

    /// What the API must say; None while that is not decided. A mapped pod whose sandbox ended
    /// keeps its record until the next sandbox: its containers already make it not Ready.
    fn wanted_record(&self, facts: &PodFacts, progress: &Progress<'_>) -> Option<Record> {
        let current = &facts.record;
        if let Some(refusal) = &self.refusal {
            let condition = condition(false, refusal.kind.reason(), cut(&refusal.message));
            return Some(Record {
                annotation: self.without_lost_ports(facts, refusal.kind),
                condition: Some(condition),
                ..current.clone()
            });
        }
        let request = match &self.want {
            Want::Invalid(_) => return None,
            Want::Nothing => return Some(released(facts)),
            Want::Ports(request) => request,
        };
        if !progress.held || !progress.ruled {
            return None;
        }
        let entries = self.result(progress)?;
        let message = summary(&entries, progress.host_ip);
        let (annotation, message) = match &self.typo {
            None => (Some(annotation::encode(&entries)), cut(&message)),
            // the user corrects the text, and would not find it again
            Some(typo) => (current.annotation.clone(), mapped_despite(&message, typo)),
        };
        Some(Record {
            annotation,
            mark: Some(request.to_mark()),
            condition: Some(condition(true, REASON_MAPPED, message)),
        })
    }

    /// The annotation of a pod that is refused. A result names a port that may be another pod's by now, if
    /// the pod lost it and gets no other one: the request takes its place.
    fn without_lost_ports(&self, facts: &PodFacts, refused: EventKind) -> Option<String> {
        let text = facts.record.annotation.as_deref()?;
        let is_lost =
            refused == EventKind::NoFreePort && annotation::classify(text) == Value::Result;
        match &self.want {
            Want::Ports(request) if is_lost => Some(request.to_annotation(&facts.spec)),
            _ => Some(text.to_owned()),
        }
    }

    /// The event for what a write has just made true.
    fn announce(&mut self, written: &Record) -> Option<(EventKind, String)> {
        let facts = self.facts.as_ref()?;
        let publish = &mut self.publish;
        let last_event = publish.last_event.take();
        if let Some(typo) = self.typo.as_ref().filter(|_| self.refusal.is_none()) {
            let (kind, message) = (EventKind::InvalidRequest, unused(typo));
            let refusal = Some(Refusal { kind, message });
            let changed = last_event != refusal;
            publish.last_event.clone_from(&refusal);
            return refusal.filter(|_| changed).map(|it| (kind, it.message));
        }
        if let Some(mapped) = written.condition.as_ref().filter(|c| c.status) {
            let changed = publish.announced != written.annotation || last_event.is_some();
            publish.announced.clone_from(&written.annotation);
            let gated = facts.spec.has_gate(CONDITION);
            return changed.then(|| (EventKind::Mapped, mapped_note(&mapped.message, gated)));
        }
        if let Some(refusal) = &self.refusal {
            let changed = last_event.as_ref() != Some(refusal);
            publish.last_event = Some(refusal.clone());
            return changed.then(|| (refusal.kind, cut(&refusal.message)));
        }
        let condition = written.condition.as_ref();
        if condition.is_some_and(|condition| condition.reason != REASON_RELEASED) {
            // a refusal that is over by now
            return None;
        }
        annotation::decode(&publish.announced.take()?)?;
        let note = "the pod's host ports are released".to_owned();
        Some((EventKind::Released, note))
    }
}

/// The record of a pod that has finished or asks for nothing; unchanged where nothing is ours.
fn released(facts: &PodFacts) -> Record {
    let current = &facts.record;
    let published = current.condition.is_some() || current.mark.is_some();
    let idle = current.annotation.is_some() && !facts.finished;
    if !published || idle && current.condition.is_none() {
        return current.clone();
    }
    let message = if facts.finished {
        "the pod has ended; its host ports are released"
    } else {
        "the pod does not ask for a host port any more; it stays not Ready while its readiness \
         gate waits for one: annotate it again or replace it"
    };
    // a gate with a False condition keeps the pod not Ready like one without, but says why
    let gated = facts.finished || facts.spec.has_gate(CONDITION);
    Record {
        // a result that is not true any more must not stay; any other text is the user's
        annotation: current.annotation.clone().map(|text| {
            let result = annotation::classify(&text) == Value::Result;
            if result { String::new() } else { text }
        }),
        mark: None,
        condition: gated.then(|| condition(false, REASON_RELEASED, message.to_owned())),
    }
}

/// Returns the write for a pod of a node from which portmapping is being removed; None where nothing
/// of ours is published. What the pod asks for stays, so that a later installation maps it again.
#[must_use]
pub fn uninstalled(facts: &PodFacts) -> Option<Publication> {
    let current = &facts.record;
    if facts.finished || current.condition.is_none() && current.mark.is_none() {
        return None;
    }
    let marked = current
        .mark
        .as_deref()
        .and_then(|mark| PortRequest::from_mark(mark, &facts.spec, usize::MAX).ok());
    let annotation = current.annotation.as_ref().map(|text| {
        let asked = marked.map(|request| request.to_annotation(&facts.spec));
        match annotation::decode(text) {
            Some(_result) => asked.unwrap_or_default(),
            None => text.clone(),
        }
    });
    let message = "portmapping was removed from the node; the pod's host ports are released";
    let wanted = Record {
        annotation,
        mark: None,
        condition: Some(condition(false, REASON_RELEASED, message.to_owned())),
    };
    (wanted != *current).then(|| Publication {
        pod: facts.pod.clone(),
        version: facts.version.clone(),
        current: current.clone(),
        wanted,
    })
}

fn condition(status: bool, reason: &str, message: String) -> Condition {
    Condition {
        status,
        reason: reason.to_owned(),
        message,
    }
}

/// `10.0.0.11:23817 -> 9040/TCP, ...` for condition and event.
fn summary(entries: &[ResultEntry], node: Option<IpAddr>) -> String {
    let lines = entries.iter().map(|entry| {
        let host = match (entry.host_ip.as_str(), node) {
            ("", Some(node)) => node.to_string(),
            ("", None) => "node".to_owned(),
            (host_ip, _) => host_ip.to_owned(),
        };
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        format!("{host}{}", describe_port(entry))
    });
    lines.collect::<Vec<_>>().join(", ")
}

/// What is wrong with a text that does not count.
fn unused(typo: &InvalidRequest) -> String {
    let kept = "; until then the pod keeps the host ports of its last valid request";
    cut_to(&typo.to_string(), MESSAGE_BYTES / 2 - kept.len()) + kept
}

/// The condition's message of a pod that is mapped while its annotation has a typo.
fn mapped_despite(summary: &str, typo: &InvalidRequest) -> String {
    let unused = format!("; {}", unused(typo));
    cut_to(summary, MESSAGE_BYTES - unused.len()) + &unused
}

/// The note of `PortsMapped`. A user who waits for Ready must learn that it did not wait.
fn mapped_note(summary: &str, gated: bool) -> String {
    if gated {
        return summary.to_owned();
    }
    cut_to(summary, MESSAGE_BYTES - UNGATED.len()) + UNGATED
}

fn cut(text: &str) -> String {
    cut_to(text, MESSAGE_BYTES)
}

fn cut_to(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes - 3).rev().find(|at| text.is_char_boundary(*at));
    format!("{}...", &text[..end.unwrap_or(0)])
}
