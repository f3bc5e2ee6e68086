//! The annotation's value: a request or a result, the result byte for byte as galaxy writes it.

use serde::{Deserialize, Serialize};

use crate::ask::{Ask, RequestError};
use crate::contract::MAX_REQUEST_BYTES;
use crate::port::Protocol;

/// Longest result that is read, in bytes.
const MAX_RESULT_BYTES: usize = 4 * MAX_REQUEST_BYTES;

/// One published port; JSON schema and field order of `api/k8s.Port` in tkestack/galaxy v1.0.4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultEntry {
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Upper case, as in the pod's spec.
    pub protocol: Protocol,
    /// The only node address that answers; left out where all do.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
    /// Name of the pod.
    pub pod_name: String,
    /// First address of the pod.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
}

/// The compact JSON array that `kubectl describe` shows on one line.
#[must_use]
pub fn encode(entries: &[ResultEntry]) -> String {
    // numbers and strings with string keys: nothing here can fail to serialise
    serde_json::to_string(entries).unwrap_or_default()
}

/// Reads a published result back; None for anything else.
///
/// What comes back is a wish ("these host ports were mine"), never a place to send traffic to.
#[must_use]
pub fn decode(value: &str) -> Option<Vec<ResultEntry>> {
    if value.len() > MAX_RESULT_BYTES {
        return None;
    }
    serde_json::from_str(value).ok()
}

/// What an annotation's value turns out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A user asks for ports.
    Request(Ask),
    /// A published result: this pod's own, or one copied along with a manifest.
    Result,
    /// Neither.
    Invalid(RequestError),
}

/// Tells a request from a result from nonsense.
#[must_use]
pub fn classify(value: &str) -> Value {
    // a result is longer than a request; neither is ever as long as what a body may bring
    if value.len() <= MAX_RESULT_BYTES && is_result(value) {
        return Value::Result;
    }
    match Ask::parse(value) {
        Ok(ask) => Value::Request(ask),
        Err(error) => Value::Invalid(error),
    }
}

/// An array of objects of which at least one carries what only an enforcer can know.
fn is_result(value: &str) -> bool {
    let Ok(entries) =
        serde_json::from_str::<Vec<serde_json::Map<String, serde_json::Value>>>(value)
    else {
        return false;
    };
    entries.iter().any(|entry| {
        let granted = entry.get("hostPort").and_then(serde_json::Value::as_i64);
        granted.is_some_and(|port| port > 0)
            || entry.contains_key("podIP")
            || entry.contains_key("podName")
    })
}

#[cfg(test)]
mod tests;
