//! The registry of a program's metrics, and its text format.

use std::fmt;

use portmapping_shared::contract::METRIC_PREFIX;
use prometheus_client::encoding::text;
use prometheus_client::registry::{Metric, Registry};

/// Content type of the text of [`encode`]; from the `OpenMetrics` specification 1.0.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names and values of the labels of a metric.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Returns an empty registry; every metric in it is named `portmapping_...`.
#[must_use]
pub fn registry() -> Registry {
    Registry::with_prefix(METRIC_PREFIX)
}

/// Makes a metric and registers it.
pub fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Returns all metrics as text.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut out = String::new();
    text::encode(&mut out, registry)?;
    Ok(out)
}
