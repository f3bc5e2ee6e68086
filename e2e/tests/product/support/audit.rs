//! The API server's audit log: a line per call, without bodies.

use anyhow::{Context, Result};
use e2e::Cluster;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

/// The calls so far, in the order in which they were answered.
pub(crate) fn calls(cluster: &Cluster) -> Result<Vec<Value>> {
    let log = std::fs::read_to_string(cluster.audit_log()?).context("read the audit log")?;
    let calls = log.lines().map(serde_json::from_str);
    // the last line may be half written
    Ok(calls.filter_map(Result::ok).collect())
}

/// A time of a call, such as `stageTimestamp`, when it was answered; in microseconds since 1970.
pub(crate) fn time(call: &Value, field: &str) -> Result<i64> {
    let time: MicroTime = serde_json::from_value(call[field].clone())
        .with_context(|| format!("no {field} in {call}"))?;
    Ok(time.0.as_microsecond())
}
