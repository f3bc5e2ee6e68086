//! The annotation's value: a request or a result, the result byte for byte as galaxy writes it.

use serde::{Deserialize, Serialize};

use crate::ask::{Ask, RequestError};
use crate::contract::MAX_REQUEST_BYTES;
use crate::port::Protocol;

/// Longest result that is read, in bytes.
const MAX_RESULT_BYTES: usize = 4 * MAX_REQUEST_BYTES;

/// One published port. JSON schema and field order of `api/k8s.Port` in tkestack/galaxy v1.0.4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultEntry {
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Upper case, as in the pod's spec.
    pub protocol: Protocol,
    /// The only node address that answers; omitted where all do.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
    /// Name of the pod.
    pub pod_name: String,
    /// First address of the pod.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
}

/// Returns the compact JSON array that `kubectl describe` shows on one line.
#[must_use]
pub fn encode(entries: &[ResultEntry]) -> String {
    // numbers and strings with string keys: this cannot fail
    serde_json::to_string(entries).unwrap_or_default()
}

/// Reads a published result; None for anything else.
///
/// It only tells which host ports the pod had. Its addresses are never the destination of a rule:
/// a user may have written them.
#[must_use]
pub fn decode(value: &str) -> Option<Vec<ResultEntry>> {
    if value.len() > MAX_RESULT_BYTES {
        return None;
    }
    serde_json::from_str(value).ok()
}

/// What the value of the annotation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A user asks for ports.
    Request(Ask),
    /// A published result: this pod's own, or one copied along with a manifest.
    Result,
    /// Neither of the two.
    Invalid(RequestError),
}

/// Decides whether a value is a request, a result or neither.
#[must_use]
pub fn classify(value: &str) -> Value {
    // a result is longer than a request; an annotation may be much longer than both
    if value.len() <= MAX_RESULT_BYTES && is_result(value) {
        return Value::Result;
    }
    match Ask::parse(value) {
        Ok(ask) => Value::Request(ask),
        Err(error) => Value::Invalid(error),
    }
}

/// Returns whether the value is an array of objects and one of them has a key that only an enforcer
/// writes.
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
