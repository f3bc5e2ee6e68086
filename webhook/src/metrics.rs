//! The webhook's metrics.

use std::time::Duration;

use portmapping_runtime::metrics::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Upper bounds of the latency buckets in seconds, from the fastest review to the deadline.
const LATENCY_BUCKETS: [f64; 12] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 4.0,
];

/// The webhook's metrics; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// By `outcome`.
    reviews: Family<Labels<1>, Counter>,
    latency: Histogram,
    /// By `reason`: `tls` or `timeout`.
    handshake_failures: Family<Labels<1>, Counter>,
    connections: Gauge,
    /// By `reason`: `evicted` or `silent`.
    closed: Family<Labels<1>, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reviews: Family::default(),
            latency: Histogram::new(LATENCY_BUCKETS),
            handshake_failures: Family::default(),
            connections: Gauge::default(),
            closed: Family::default(),
        }
    }
}

impl Metrics {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "reviews",
            "Admission reviews by outcome",
            self.reviews.clone(),
        );
        registry.register(
            "review_duration_seconds",
            "Time from the header of a review to its response",
            self.latency.clone(),
        );
        registry.register(
            "handshake_failures",
            "TLS handshakes that failed or timed out",
            self.handshake_failures.clone(),
        );
        registry.register(
            "connections",
            "Open connections to the webhook",
            self.connections.clone(),
        );
        registry.register(
            "connections_closed",
            "Connections that the webhook closed because they were silent for too long or others needed room",
            self.closed.clone(),
        );
    }

    /// Counts a review.
    pub fn record_review(&self, outcome: &'static str, took: Duration) {
        self.reviews.get_or_create(&[("outcome", outcome)]).inc();
        self.latency.observe(took.as_secs_f64());
    }

    pub(crate) fn record_handshake_failure(&self, reason: &'static str) {
        self.handshake_failures
            .get_or_create(&[("reason", reason)])
            .inc();
    }

    pub(crate) fn record_closed(&self, reason: &'static str) {
        self.closed.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn set_connections(&self, count: usize) {
        self.connections
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
