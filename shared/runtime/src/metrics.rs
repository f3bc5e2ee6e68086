//! The registry of a program's metrics, and its text format.

use std::fmt;

use portmapping_shared::contract::METRIC_PREFIX;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// Content type of the text of [`encode`]; from the `OpenMetrics` specification 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns an empty registry; every metric in it is named `portmapping_...`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix(METRIC_PREFIX)
}

/// Returns all metrics as text.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, registry)?;
    Ok(out)
}
