//! What the API shall say about each pod, and the one write that makes it say so.

use std::net::IpAddr;
use std::time::Duration;

use portmapping_shared::contract::{CONDITION, REASON_MAPPED, REASON_RELEASED};
use portmapping_shared::{PodUid, ResultEntry, annotation};

use super::NodeState;
use crate::action::{Action, Condition, EventKind, Publication, Record};
use crate::pods::state::{PodState, Want};

/// First and longest wait between tries to write one pod.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long our own write may take to come back on the watch.
const ECHO: Duration = Duration::from_secs(10);
/// Longest condition message and event note, in bytes (events.k8s.io/v1 allows 1 kB).
const MESSAGE_BYTES: usize = 1000;
/// Said of a pod that was annotated while it ran, or created while the webhook was away.
const UNGATED: &str = " (no readiness gate: Ready did not wait for this)";

impl NodeState {
    /// The API server took a publication, or refused it.
    pub fn published(&mut self, now: Duration, uid: &PodUid, taken: bool) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let Some(publication) = pod.publish.in_flight.take() else {
            return;
        };
        if taken {
            pod.publish.retry_at = None;
            pod.publish.failures = 0;
            let seen = pod
                .facts
                .as_ref()
                .is_some_and(|f| f.record == publication.wanted);
            if !seen {
                pod.publish.echo = Some((publication.wanted.clone(), now + ECHO));
            }
            self.announce(uid, &publication);
        } else {
            let doublings = pod.publish.failures.min(10);
            let wait = RETRY.0.saturating_mul(1 << doublings).min(RETRY.1);
            pod.publish.failures += 1;
            pod.publish.retry_at = Some(now + wait);
        }
        self.dirty.insert(uid.clone());
        self.converge(now);
    }

    /// Asks for the pod's write, if one is due.
    pub(super) fn publish(&mut self, now: Duration, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else {
            return;
        };
        let publish = &pod.publish;
        let free = publish.in_flight.is_none() && publish.retry_at.is_none_or(|at| at <= now);
        let publication = free.then(|| self.publication(uid)).flatten();
        // while our write is on its way back, only news is worth another one
        let echo = publish.echo.as_ref().filter(|(_, until)| now < *until);
        let due = publication.filter(|due| echo.is_none_or(|(echo, _)| *echo != due.wanted));
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let publish = &mut pod.publish;
        if due.is_some()
            || publish
                .echo
                .as_ref()
                .is_some_and(|(_, until)| *until <= now)
        {
            publish.echo = None;
        }
        if due.is_some() || publish.retry_at.is_some_and(|at| at <= now) {
            // asked for now, or the reason to write is gone
            publish.retry_at = None;
        }
        if let Some(publication) = due {
            publish.in_flight = Some(publication.clone());
            if let Some(annotation) = &publication.wanted.annotation {
                pod.record_written(annotation.clone());
            }
            self.actions.push(Action::Publish(publication));
        }
    }

    /// The write a pod is due, if any.
    pub(super) fn publication(&self, uid: &PodUid) -> Option<Publication> {
        let pod = self.pods.get(uid)?;
        let facts = pod.facts.as_ref()?;
        let wanted = self.wanted_record(uid, pod)?;
        let gone = facts.deleting && facts.finished;
        (wanted != facts.record && !gone).then(|| Publication {
            pod: facts.pod.clone(),
            current: facts.record.clone(),
            wanted,
        })
    }

    /// What the API shall say; None while that is still open. A mapped pod whose sandbox ended
    /// keeps its words until the next one: its containers hold Ready back, not we.
    fn wanted_record(&self, uid: &PodUid, pod: &PodState) -> Option<Record> {
        let facts = pod.facts.as_ref()?;
        let current = &facts.record;
        if let Some(refusal) = &pod.refusal {
            let condition = Condition {
                status: false,
                reason: refusal.kind.reason().to_owned(),
                message: cut(&refusal.message),
            };
            return Some(Record {
                condition: Some(condition),
                ..current.clone()
            });
        }
        match &pod.want {
            Want::Invalid(_) => None,
            Want::Nothing => Some(released(pod, current)),
            Want::Ports(request) => {
                let complete = pod.unleased().is_empty() && pod.all_held();
                if !complete || !self.kernel.intact || !self.has_rules(uid) {
                    return None;
                }
                // an address that a newer pod owns by now has no rules of this one
                if self.desired.of(uid).is_empty() && !pod.lease.is_empty() {
                    return None;
                }
                let entries = pod.result()?;
                Some(Record {
                    annotation: Some(annotation::encode(&entries)),
                    mark: Some(request.to_mark()),
                    condition: Some(Condition {
                        status: true,
                        reason: REASON_MAPPED.to_owned(),
                        message: cut(&summary(&entries, self.node_ip(pod))),
                    }),
                })
            }
        }
    }

    /// The node's address, of this pod or of any other: right after its start a pod has none yet.
    fn node_ip(&self, pod: &PodState) -> Option<IpAddr> {
        let facts = pod.facts.as_ref();
        let own = facts.and_then(|facts| facts.host_ips.first());
        own.or(self.host_ips.first()).copied()
    }

    /// Tells people what a write has just made true, once.
    fn announce(&mut self, uid: &PodUid, publication: &Publication) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let wanted = &publication.wanted;
        let mapped = wanted
            .condition
            .as_ref()
            .is_some_and(|condition| condition.status);
        let event = if mapped {
            let fresh = pod.announced != wanted.annotation || pod.last_event.is_some();
            pod.last_event = None;
            pod.announced.clone_from(&wanted.annotation);
            let condition = wanted.condition.as_ref().filter(|_| fresh);
            let gated = pod
                .facts
                .as_ref()
                .is_some_and(|facts| facts.spec.has_gate(CONDITION));
            condition.map(|condition| (EventKind::Mapped, mapped_note(&condition.message, gated)))
        } else if let Some(refusal) = pod.refusal.clone() {
            let news = pod.last_event.as_ref() != Some(&refusal);
            pod.last_event = Some(refusal.clone());
            news.then_some((refusal.kind, cut(&refusal.message)))
        } else {
            pod.last_event = None;
            let before = pod.announced.take();
            let mapped = before.is_some_and(|value| annotation::decode(&value).is_some());
            mapped.then(|| {
                (
                    EventKind::Released,
                    "the pod's host ports are released".to_owned(),
                )
            })
        };
        if let Some((kind, note)) = event {
            self.emit(uid, kind, note);
        }
    }
}

/// What is left of a pod that has ended or asks no more. Untouched where nothing of ours was there.
fn released(pod: &PodState, current: &Record) -> Record {
    let Some(facts) = &pod.facts else {
        return current.clone();
    };
    let published = current.condition.is_some() || current.mark.is_some();
    let idle = current.annotation.is_some() && !facts.finished;
    if !published || idle && current.condition.is_none() {
        return current.clone();
    }
    let message = if facts.finished {
        "the pod has ended; its host ports are released"
    } else {
        "the pod asks for no host port any more; it stays not ready while its readiness gate \
         waits for one: annotate it again or replace it"
    };
    // a gate without a condition and one with a False one hold Ready back alike; the latter says why
    let condition = (facts.finished || facts.spec.has_gate(CONDITION)).then(|| Condition {
        status: false,
        reason: REASON_RELEASED.to_owned(),
        message: message.to_owned(),
    });
    Record {
        // a result that is true no more must not stand; "" asks, which a finished pod may
        annotation: current.annotation.as_ref().map(|_| String::new()),
        mark: None,
        condition,
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
        format!("{host}{}", crate::pods::describe_port(entry))
    });
    lines.collect::<Vec<_>>().join(", ")
}

/// What the event of a mapping says. Somebody who waits for Ready must learn that it says nothing.
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
    let end = (0..=bytes - 3)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    format!("{}...", &text[..end])
}
