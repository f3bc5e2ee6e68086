//! Events on pods, events.k8s.io/v1.
//!
//! Every change of a pod has an event with its own text; only equal events are one series. kube's
//! recorder ignores the text when it aggregates, so `kubectl describe pod` would show the ports of an
//! earlier mapping. It also goes on patching an event that was deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use portmapping_enforcer_core::{EventKind, PodEvent};
use portmapping_shared::PodUid;
use portmapping_shared::contract::ENFORCER_MANAGER;
use serde_json::json;

/// What the enforcer was doing, in the words of the events API.
const ACTION: &str = "MapPorts";
/// Longest note that the API server accepts, bytes (validateV1EventCreation).
const MAX_NOTE: usize = 1024;
/// Longest name of an object, bytes.
const MAX_NAME: usize = 253;
/// An equal event within this time continues a series; client-go uses the same time.
const SERIES_TIME: Duration = Duration::from_mins(6);
/// Most series that are remembered. When there are more, the oldest is forgotten: its next event is
/// created instead of patched.
const MAX_SERIES: usize = 1024;
/// HTTP status of an object that does not exist.
const NOT_FOUND: u16 = 404;

/// Writes events; cheap to clone.
#[derive(Clone)]
pub(super) struct Events {
    client: Client,
    instance: Arc<str>,
    recent: Arc<Mutex<RecentEvents>>,
}

impl Events {
    /// Returns a writer that signs its events with the node's name.
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            instance: node.into(),
            recent: Arc::default(),
        }
    }

    /// Creates a warning on the Node object of this node. Events on objects without a namespace belong
    /// to namespace `default`.
    pub(super) async fn write_on_node(&self, reason: &str, note: &str) -> Result<(), kube::Error> {
        let regarding = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.instance.to_string()),
            // as the kubelet writes it, so that `kubectl describe node` shows the event
            uid: Some(self.instance.to_string()),
            ..Default::default()
        };
        let event = Described {
            namespace: "default",
            name: unique_name(&self.instance, rand::random()),
            regarding,
            reason,
            is_warning: true,
            note,
        };
        let created = event.object(&self.instance, Timestamp::now());
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        api.create(&PostParams::default(), &created).await?;
        Ok(())
    }

    /// Creates the event, or continues the series of an equal one.
    pub(super) async fn write(&self, event: &PodEvent) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &event.pod.namespace);
        let key = (event.pod.uid.clone(), event.kind, event.note.clone());
        let ongoing = self.recent.lock().find(&key, Instant::now());
        if let Some(Series { name, count, .. }) = ongoing {
            let series = json!({ "series": {
                "count": count + 1,
                "lastObservedTime": MicroTime(Timestamp::now()),
            } });
            match api
                .patch(&name, &PatchParams::default(), &Patch::Merge(series))
                .await
            {
                // it was deleted, or has expired: it is created again
                Err(kube::Error::Api(status)) if status.code == NOT_FOUND => {}
                patched => {
                    patched?;
                    self.recent.lock().record(key, name, Instant::now());
                    return Ok(());
                }
            }
        }
        let name = unique_name(&event.pod.name, rand::random());
        let created = new_event(event, &name, &self.instance, Timestamp::now());
        api.create(&PostParams::default(), &created).await?;
        self.recent.lock().record(key, name, Instant::now());
        Ok(())
    }
}

/// What makes two events equal.
type Key = (PodUid, EventKind, String);

/// An event in the API and how often it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Series {
    name: String,
    count: i32,
    last: Instant,
}

/// The events of the last [`SERIES_TIME`]. Pure: the time is an argument.
#[derive(Debug, Default)]
struct RecentEvents(HashMap<Key, Series>);

impl RecentEvents {
    /// Returns the series of an equal event.
    fn find(&mut self, key: &Key, now: Instant) -> Option<Series> {
        self.0
            .retain(|_, series| now.duration_since(series.last) < SERIES_TIME);
        self.0.get(key).cloned()
    }

    /// Records that an event was written under this name.
    fn record(&mut self, key: Key, name: String, now: Instant) {
        if self.0.len() >= MAX_SERIES && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, series)| series.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
        let before = self.0.get(&key).filter(|series| series.name == name);
        let count = before.map_or(1, |series| series.count.saturating_add(1));
        let series = Series {
            name,
            count,
            last: now,
        };
        self.0.insert(key, series);
    }
}

fn new_event(event: &PodEvent, name: &str, instance: &str, now: Timestamp) -> Event {
    let PodEvent { pod, kind, note } = event;
    let described = Described {
        namespace: &pod.namespace,
        name: name.to_owned(),
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.to_string()),
            ..Default::default()
        },
        reason: kind.reason(),
        is_warning: kind.is_warning(),
        note,
    };
    described.object(instance, now)
}

/// What an event says.
struct Described<'a> {
    namespace: &'a str,
    name: String,
    regarding: ObjectReference,
    reason: &'a str,
    is_warning: bool,
    note: &'a str,
}

impl Described<'_> {
    fn object(self, instance: &str, now: Timestamp) -> Event {
        let kind = if self.is_warning { "Warning" } else { "Normal" };
        Event {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.to_owned()),
                name: Some(self.name),
                ..Default::default()
            },
            event_time: Some(MicroTime(now)),
            action: Some(ACTION.to_owned()),
            reason: Some(self.reason.to_owned()),
            note: Some(shortened(self.note)),
            type_: Some(kind.to_owned()),
            reporting_controller: Some(ENFORCER_MANAGER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            regarding: Some(self.regarding),
            ..Default::default()
        }
    }
}

/// Returns a name of its own for an event of the pod: a valid DNS subdomain like the pod's name.
fn unique_name(pod: &str, random: u64) -> String {
    let end = format!(".{random:016x}");
    let pod: String = pod.chars().take(MAX_NAME - end.len()).collect();
    format!("{}{end}", pod.trim_end_matches(['.', '-']))
}

/// Returns the note, cut to what the API server accepts: with 64 ports it can be longer.
fn shortened(note: &str) -> String {
    const MORE: &str = " ...";
    if note.len() <= MAX_NOTE {
        return note.to_owned();
    }
    let end = note.floor_char_boundary(MAX_NOTE - MORE.len());
    format!("{}{MORE}", &note[..end])
}

#[cfg(test)]
mod tests;
