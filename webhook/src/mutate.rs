//! Decides about a pod. Pure: a pod in, a verdict out.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, PatchOperation, RemoveOperation, ReplaceOperation};
use portmapping_shared::annotation::{self, Value};
use portmapping_shared::ask::{Ask, AskedPort, PortOrName};
use portmapping_shared::contract::{ANNOTATION, CONDITION, REQUEST_MARK};
use portmapping_shared::{InvalidRequest, PodSpec, PortRequest, Protocol};
use serde_json::json;

use crate::pod::{Annotations, Pod};

/// For a manifest that was copied from a mapped pod, result included. The policy for pod templates
/// has the same text, as it has that of the next one.
const COPIED_RESULT: &str = "tkestack.io/portmapping: the value is the result of another pod and \
                             counts as \"\"; the pod gets host ports of its own";
/// For a user who wants a certain host port.
const CHOSEN_HOST_PORT: &str = "tkestack.io/portmapping: a hostPort cannot be chosen here, so the \
                                value counts as \"\"; for a certain host port use \
                                ports[].hostPort of the container";
/// For a pod that declares no port.
const NO_PORTS: &str = "tkestack.io/portmapping: the pod declares no container port; nothing is \
                        mapped unless another webhook adds a container that declares one";
/// For a pod whose node has no enforcer.
const WINDOWS: &str = "tkestack.io/portmapping: host ports are mapped on Linux nodes only; the \
                       annotation has no effect on a Windows pod";

/// The decision about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Admit it.
    Allow {
        /// Why, for response, log and metrics.
        reason: Reason,
        /// Changes to the pod; may be empty.
        patch: Vec<PatchOperation>,
        /// Shown to the user; the API server passes on 256 characters of each.
        warnings: Vec<String>,
    },
    /// Refuse it.
    Deny(InvalidRequest),
}

/// Why a pod is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It asks for nothing, or it is not a pod.
    NotAsked,
    /// It asks for ports.
    PortsRequested,
    /// Its annotation held another pod's result, which was reset to a request.
    ResultReset,
    /// It asks, but declares no port.
    NoPorts,
    /// It asks, but only runs on Windows nodes.
    WindowsPod,
}

impl Reason {
    /// The word in responses and metrics. Users' alerts depend on it: do not change it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "NotAsked",
            Self::PortsRequested => "PortsRequested",
            Self::ResultReset => "ResultReset",
            Self::NoPorts => "NoPorts",
            Self::WindowsPod => "WindowsPod",
        }
    }
}

impl Verdict {
    /// Admits an object unchanged.
    #[must_use]
    pub fn unchanged() -> Self {
        Self::Allow {
            reason: Reason::NotAsked,
            patch: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// Judges a pod that is being created. Idempotent: the patched pod gets an empty patch.
#[must_use]
pub fn judge(pod: &Pod, max_ports: usize) -> Verdict {
    let annotations = &pod.metadata.annotations;
    let Some(asked) = &annotations.request else {
        // the admission policy refuses a request mark without a request
        return Verdict::unchanged();
    };
    let request = match PortRequest::resolve(asked, &pod.spec, max_ports) {
        Ok(request) => request,
        Err(invalid) => return Verdict::Deny(invalid),
    };

    let mut patch = Vec::new();
    let mut warnings = Vec::new();
    let mut reason = Reason::PortsRequested;
    match annotation::classify(asked) {
        Value::Result => {
            patch.push(replace_annotation(ANNOTATION, ""));
            let copied = asked.contains("\"podName\"") || asked.contains("\"podIP\"");
            let warning = if copied {
                COPIED_RESULT
            } else {
                CHOSEN_HOST_PORT
            };
            warnings.push(warning.to_owned());
            reason = Reason::ResultReset;
        }
        Value::Request(Ask::These(ports)) => warnings.extend(other_protocol(&ports, &pod.spec)),
        // an invalid value was denied above
        Value::Request(Ask::All) | Value::Invalid(_) => {}
    }
    let unmapped = if pod.spec.needs_windows() {
        Some((Reason::WindowsPod, WINDOWS))
    } else if request.ports.is_empty() {
        // another webhook may still add a sidecar with ports; the API server then calls this one again
        Some((Reason::NoPorts, NO_PORTS))
    } else {
        None
    };
    if let Some((why, warning)) = unmapped {
        patch.extend(
            annotations
                .mark
                .iter()
                .map(|_| remove_annotation(REQUEST_MARK)),
        );
        warnings.push(warning.to_owned());
        reason = why;
    } else {
        patch.extend(set_mark(annotations, &request.to_mark()));
        patch.extend(add_gate(&pod.spec));
    }
    patch.extend(
        annotations
            .per_port
            .iter()
            .map(|key| remove_annotation(key)),
    );
    Verdict::Allow {
        reason,
        patch,
        warnings,
    }
}

/// A warning for a request by number whose protocol no container declares for that number. Reads the declared
/// ports once: there may be tens of thousands, and hundreds of entries.
fn other_protocol(asked: &[AskedPort], spec: &PodSpec) -> Option<String> {
    let asked = asked.iter().filter_map(|port| match port.container_port {
        PortOrName::Number(number) => Some((i64::from(number.get()), port.protocol?)),
        PortOrName::Name(_) => None,
    });
    let numbers = asked.clone().map(|(number, _)| (number, Vec::new()));
    let mut declared: BTreeMap<i64, Vec<Protocol>> = numbers.collect();
    for port in spec.lasting_containers().flat_map(|it| &it.ports) {
        let Some(known) = declared.get_mut(&port.container_port) else {
            continue;
        };
        let protocol = match port.protocol.as_str() {
            "" => Some(Protocol::Tcp),
            text => text.parse().ok(),
        };
        known.extend(protocol.filter(|protocol| !known.contains(protocol)));
    }
    asked.into_iter().find_map(|(number, protocol)| {
        let known = declared.get(&number)?;
        let first = known.first()?;
        (!known.contains(&protocol)).then(|| {
            format!(
                "{ANNOTATION}: a container declares port {number} as {first}, but the value asks \
                 for {protocol}; the host port will be {protocol}"
            )
        })
    })
}

/// Sets the request mark, whatever its value was.
fn set_mark(annotations: &Annotations, mark: &str) -> Option<PatchOperation> {
    match &annotations.mark {
        Some(present) if present == mark => None,
        Some(_) => Some(replace_annotation(REQUEST_MARK, mark)),
        None => Some(PatchOperation::Add(AddOperation {
            path: annotation_path(REQUEST_MARK),
            value: json!(mark),
        })),
    }
}

/// Adds the readiness gate. An absent, null or empty list becomes a list of one.
fn add_gate(spec: &PodSpec) -> Option<PatchOperation> {
    if spec.has_gate(CONDITION) {
        return None;
    }
    let gate = json!({ "conditionType": CONDITION });
    let mut path = PointerBuf::from_tokens(["spec", "readinessGates"]);
    let value = if spec.readiness_gates.is_empty() {
        json!([gate])
    } else {
        path.push_back("-");
        gate
    };
    Some(PatchOperation::Add(AddOperation { path, value }))
}

fn replace_annotation(key: &str, value: &str) -> PatchOperation {
    PatchOperation::Replace(ReplaceOperation {
        path: annotation_path(key),
        value: json!(value),
    })
}

fn remove_annotation(key: &str) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation {
        path: annotation_path(key),
    })
}

/// The path of an annotation, with `/` and `~` of the key escaped (RFC 6901 section 3).
fn annotation_path(key: &str) -> PointerBuf {
    PointerBuf::from_tokens(["metadata", "annotations", key])
}

#[cfg(test)]
mod tests;
