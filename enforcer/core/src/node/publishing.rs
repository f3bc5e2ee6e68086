//! What the API shall say about each pod, and the one write that makes it say so.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::contract::{CONDITION, REASON_MAPPED, REASON_RELEASED};
use portmapping_shared::{Mapping, PodUid, annotation};

use super::NodeState;
use crate::action::{Action, Condition, EventKind, Publication, Record};
use crate::pod::{Tenant, Want};

/// First and longest wait between tries to write one pod.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long our own write may take to come back on the watch.
const ECHO: Duration = Duration::from_secs(10);
/// Longest condition message and event note, in bytes (events.k8s.io/v1 allows 1 kB).
const MESSAGE_BYTES: usize = 1000;

impl NodeState {
    /// The API server took a publication, or refused it.
    pub fn published(&mut self, now: Duration, uid: &PodUid, taken: bool) {
        let Some(tenant) = self.tenants.get_mut(uid) else {
            return;
        };
        let Some(publication) = tenant.publish.in_flight.take() else {
            return;
        };
        if taken {
            tenant.publish.retry_at = None;
            tenant.publish.failures = 0;
            let seen = tenant
                .facts
                .as_ref()
                .is_some_and(|f| f.record == publication.wanted);
            if !seen {
                tenant.publish.echo = Some((publication.wanted.clone(), now + ECHO));
            }
            self.announce(uid, &publication);
        } else {
            let doublings = tenant.publish.failures.min(10);
            let wait = RETRY.0.saturating_mul(1 << doublings).min(RETRY.1);
            tenant.publish.failures += 1;
            tenant.publish.retry_at = Some(now + wait);
        }
        self.converge(now);
    }

    /// Asks for every write that is due.
    pub(super) fn publish(&mut self, now: Duration) {
        let desired = self.desired();
        let due: Vec<(PodUid, Publication)> =
            self.tenants
                .iter()
                .filter(|(_, tenant)| {
                    let publish = &tenant.publish;
                    publish.in_flight.is_none() && publish.retry_at.is_none_or(|at| at <= now)
                })
                .filter_map(|(uid, tenant)| {
                    let publication = self.publication(uid, tenant, &desired)?;
                    // while our write is on its way back, only news is worth another one
                    let waiting =
                        tenant.publish.echo.as_ref().is_some_and(|(echo, until)| {
                            now < *until && *echo == publication.wanted
                        });
                    (!waiting).then(|| (uid.clone(), publication))
                })
                .collect();
        for (uid, publication) in due {
            if let Some(tenant) = self.tenants.get_mut(&uid) {
                tenant.publish.echo = None;
                tenant.publish.retry_at = None;
                tenant.publish.in_flight = Some(publication.clone());
                self.actions.push(Action::Publish(publication));
            }
        }
        for tenant in self.tenants.values_mut() {
            if tenant.publish.retry_at.is_some_and(|at| at <= now) {
                // the reason to write is gone
                tenant.publish.retry_at = None;
            }
            if tenant
                .publish
                .echo
                .as_ref()
                .is_some_and(|(_, until)| *until <= now)
            {
                tenant.publish.echo = None;
            }
        }
    }

    /// The write a pod is due, if any.
    fn publication(
        &self,
        uid: &PodUid,
        tenant: &Tenant,
        desired: &BTreeSet<Mapping>,
    ) -> Option<Publication> {
        let facts = tenant.facts.as_ref()?;
        let current = facts.record.clone();
        let wanted = self.wanted_record(uid, tenant, desired)?;
        let gone = facts.deleting && facts.finished;
        (wanted != current && !gone).then(|| Publication {
            pod: facts.pod.clone(),
            current,
            wanted,
        })
    }

    /// What the API shall say; None while that is still open.
    fn wanted_record(
        &self,
        uid: &PodUid,
        tenant: &Tenant,
        desired: &BTreeSet<Mapping>,
    ) -> Option<Record> {
        let facts = tenant.facts.as_ref()?;
        let current = &facts.record;
        if let Some(refusal) = &tenant.refusal {
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
        match &tenant.want {
            Want::Nonsense(_) => None,
            Want::Nothing => Some(released(tenant, current)),
            Want::Ports(request) => {
                let complete = tenant.unleased().is_empty() && tenant.all_held();
                if !complete || !self.is_programmed(uid, desired) {
                    return None;
                }
                // an address that a newer pod owns by now has no rules of this one
                let owned = desired.iter().any(|mapping| mapping.owner == *uid);
                if !owned && !tenant.lease.is_empty() {
                    return None;
                }
                let entries = tenant.result()?;
                Some(Record {
                    annotation: Some(annotation::encode(&entries)),
                    mark: Some(request.to_mark()),
                    condition: Some(Condition {
                        status: true,
                        reason: REASON_MAPPED.to_owned(),
                        message: cut(&summary(tenant)),
                    }),
                })
            }
        }
    }

    /// Tells people what a write has just made true, once.
    fn announce(&mut self, uid: &PodUid, publication: &Publication) {
        let Some(tenant) = self.tenants.get_mut(uid) else {
            return;
        };
        let wanted = &publication.wanted;
        let mapped = wanted
            .condition
            .as_ref()
            .is_some_and(|condition| condition.status);
        let event = if mapped {
            let fresh = tenant.announced != wanted.annotation || tenant.told.is_some();
            tenant.told = None;
            tenant.announced.clone_from(&wanted.annotation);
            fresh.then(|| (EventKind::Mapped, cut(&summary(tenant))))
        } else if let Some(refusal) = tenant.refusal.clone() {
            let news = tenant.told.as_ref() != Some(&refusal);
            tenant.told = Some(refusal.clone());
            news.then_some((refusal.kind, cut(&refusal.message)))
        } else {
            tenant.told = None;
            let before = tenant.announced.take();
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
fn released(tenant: &Tenant, current: &Record) -> Record {
    let Some(facts) = &tenant.facts else {
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
fn summary(tenant: &Tenant) -> String {
    let node = tenant
        .facts
        .as_ref()
        .and_then(|facts| facts.host_ips.first());
    let entries = tenant.result().unwrap_or_default();
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
        format!(
            "{host}:{} -> {}/{}",
            entry.host_port, entry.container_port, entry.protocol
        )
    });
    lines.collect::<Vec<_>>().join(", ")
}

fn cut(text: &str) -> String {
    if text.len() <= MESSAGE_BYTES {
        return text.to_owned();
    }
    let end = (0..=MESSAGE_BYTES - 3)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    format!("{}...", &text[..end])
}
