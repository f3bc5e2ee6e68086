//! Writes to the API server: one patch of `pods/status` per result, and events.

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use portmapping_enforcer_core::{PodEvent, Publication};
use portmapping_runtime::{CallError, within};
use portmapping_shared::contract::{ANNOTATION, CONDITION, ENFORCER_MANAGER, REQUEST_MARK};
use serde_json::{Value, json};

use self::events::Events;
use crate::pods::SlimPod;

mod events;

/// Longest wait for the API server's answer to one write.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// HTTP status of a write that was decided for another version or uid.
const CONFLICT: u16 = 409;
/// HTTP status of a write to an object that does not exist.
const NOT_FOUND: u16 = 404;

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// The patch was refused, or never answered.
    #[error("cannot publish the mapping of pod {pod}")]
    Patch {
        /// The pod.
        pod: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
    /// The event was refused, or never answered.
    #[error("cannot record event {reason} on {on}")]
    Event {
        /// The pod or the node.
        on: String,
        /// The event's reason.
        reason: &'static str,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
}

/// Writes what the state machine asks for.
#[derive(Clone)]
pub(crate) struct Publisher {
    client: Client,
    events: Events,
}

impl PublishError {
    /// Whether the pod has another version than the one that the write was decided for.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status() == Some(CONFLICT)
    }

    /// Whether the pod does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        self.status() == Some(NOT_FOUND)
    }

    /// The HTTP status of a patch that was refused.
    fn status(&self) -> Option<u16> {
        match self {
            Self::Patch {
                source:
                    CallError::Failed {
                        source: kube::Error::Api(status),
                        ..
                    },
                ..
            } => Some(status.code),
            _ => None,
        }
    }
}

impl Publisher {
    /// A publisher that signs its events with the node's name.
    #[must_use]
    pub(crate) fn new(client: Client, node: &str) -> Self {
        Self {
            events: Events::new(client.clone(), node),
            client,
        }
    }

    /// Sets annotation, request mark and condition in one patch, so that no client sees one without the
    /// others. Returns the pod's version after that.
    pub(crate) async fn publish(&self, publication: &Publication) -> Result<String, PublishError> {
        let pod = &publication.pod;
        let api: Api<SlimPod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let params = PatchParams {
            field_manager: Some(ENFORCER_MANAGER.to_owned()),
            ..Default::default()
        };
        let body = Patch::Strategic(patch(publication, Timestamp::now()));
        let call = api.patch_status(&pod.name, &params, &body);
        match within(WRITE_LIMIT, "PATCH pods/status", call).await {
            Ok(pod) => Ok(pod.metadata.resource_version.unwrap_or_default()),
            Err(source) => Err(PublishError::Patch {
                pod: pod.to_string(),
                source,
            }),
        }
    }

    /// Records an event on the pod.
    pub(crate) async fn emit(&self, event: &PodEvent) -> Result<(), PublishError> {
        within(WRITE_LIMIT, "write event", self.events.write(event))
            .await
            .map_err(|source| PublishError::Event {
                on: format!("pod {}", event.pod),
                reason: event.kind.reason(),
                source,
            })
    }

    /// Records a warning on the Node object.
    pub(crate) async fn emit_on_node(
        &self,
        reason: &'static str,
        note: &str,
    ) -> Result<(), PublishError> {
        let written = self.events.write_on_node(reason, note);
        within(WRITE_LIMIT, "write event", written)
            .await
            .map_err(|source| PublishError::Event {
                on: "the node".to_owned(),
                reason,
                source,
            })
    }
}

/// Returns the strategic merge patch. The uid in it makes the write fail on another pod of the same
/// name, and the version on a pod that changed after the decision: the user's last word counts.
fn patch(publication: &Publication, now: Timestamp) -> Value {
    let Publication {
        pod,
        version,
        current,
        wanted,
    } = publication;
    let condition = match &wanted.condition {
        None => json!({ "type": CONDITION, "$patch": "delete" }),
        Some(condition) => {
            let status = |on| if on { "True" } else { "False" };
            let mut body = json!({
                "type": CONDITION,
                "status": status(condition.status),
                "reason": condition.reason,
                "message": condition.message,
            });
            // the time of the last change of status, not of the last write
            if current.condition.as_ref().map(|before| before.status) != Some(condition.status) {
                body["lastTransitionTime"] = json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            }
            body
        }
    };
    // unchanged annotations are left out: the patch is smaller, and their owner stays the same
    let annotations = [
        (ANNOTATION, &current.annotation, &wanted.annotation),
        (REQUEST_MARK, &current.mark, &wanted.mark),
    ];
    let changed = annotations.into_iter().filter(|(_, now, then)| now != then);
    // null removes an annotation
    let annotations = changed.map(|(key, _, then)| (key.to_owned(), json!(then)));
    json!({
        "metadata": {
            "uid": pod.uid.as_str(),
            "resourceVersion": version,
            "annotations": annotations.collect::<serde_json::Map<_, _>>(),
        },
        "status": { "conditions": [condition] },
    })
}

#[cfg(test)]
mod tests;
