//! What Prometheus may ask the enforcer.

use std::sync::atomic::AtomicU64;

use portmapping_enforcer_core::Counts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How a call to the outside ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `hold`, `release`, `apply`, `observe`, `publish` or `event`.
    pub call: &'static str,
    /// `ok` or `error`.
    pub outcome: &'static str,
}

/// Labels of the counter of CNI results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    /// `sandbox`, `other`, `unusable` or `removed`.
    pub result: &'static str,
}

/// Labels of a per-protocol gauge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByProtocol {
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
}

/// The enforcer's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<CallLabels, Counter>,
    apply_seconds: Histogram,
    mappings: Gauge,
    pods: Gauge,
    refused: Gauge,
    cooling: Gauge,
    quarantined: Gauge,
    free: Family<ByProtocol, Gauge>,
    damaged: Counter,
    repairs: Counter,
    clear_failures: Counter,
    cni_results: Family<ByResult, Counter>,
    cni_watched: Gauge,
    uptime: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers all of them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms to 4 s
        let buckets = (0..13).map(|n| 0.001 * f64::from(1 << n));
        let metrics = Self {
            calls: Family::default(),
            apply_seconds: Histogram::new(buckets),
            mappings: Gauge::default(),
            pods: Gauge::default(),
            refused: Gauge::default(),
            cooling: Gauge::default(),
            quarantined: Gauge::default(),
            free: Family::default(),
            damaged: Counter::default(),
            repairs: Counter::default(),
            clear_failures: Counter::default(),
            cni_results: Family::default(),
            cni_watched: Gauge::default(),
            uptime: Gauge::default(),
        };
        registry.register(
            "calls",
            "Calls to keeper, packet filter and API server",
            metrics.calls.clone(),
        );
        registry.register(
            "apply_seconds",
            "Time of one change set",
            metrics.apply_seconds.clone(),
        );
        registry.register(
            "mappings",
            "Translations in the kernel",
            metrics.mappings.clone(),
        );
        registry.register("pods", "Pods that ask for host ports", metrics.pods.clone());
        registry.register(
            "pods_refused",
            "Pods that cannot be mapped now",
            metrics.refused.clone(),
        );
        registry.register(
            "ports_cooling",
            "Released ports at rest",
            metrics.cooling.clone(),
        );
        registry.register(
            "ports_quarantined",
            "Ports held by other processes",
            metrics.quarantined.clone(),
        );
        registry.register("ports_free", "Ports free to allocate", metrics.free.clone());
        registry.register(
            "damage",
            "Times the rules were found altered",
            metrics.damaged.clone(),
        );
        registry.register(
            "repairs",
            "Change sets that put altered rules back",
            metrics.repairs.clone(),
        );
        registry.register(
            "conntrack_failures",
            "Changes whose stale flows could not be cleared",
            metrics.clear_failures.clone(),
        );
        registry.register(
            "cni_results",
            "CNI results read, by what they are",
            metrics.cni_results.clone(),
        );
        registry.register(
            "cni_results_watched",
            "1 while CNI results are followed, 0 while pods are mapped by their status alone",
            metrics.cni_watched.clone(),
        );
        registry.register(
            "uptime_seconds",
            "Time since the start",
            metrics.uptime.clone(),
        );
        metrics
    }

    /// Counts a call.
    pub fn record_call(&self, call: &'static str, ok: bool) {
        let outcome = if ok { "ok" } else { "error" };
        self.calls
            .get_or_create(&CallLabels { call, outcome })
            .inc();
    }

    /// Notes how long a change set took, in seconds.
    pub fn record_apply(&self, seconds: f64) {
        self.apply_seconds.observe(seconds);
    }

    /// Counts rules found altered.
    pub fn record_damage(&self) {
        self.damaged.inc();
    }

    /// Counts altered rules that are back.
    pub fn record_repair(&self) {
        self.repairs.inc();
    }

    /// Counts changes whose stale flows could not be cleared.
    pub fn record_clear_failures(&self, more: u64) {
        self.clear_failures.inc_by(more);
    }

    /// Counts a CNI result: `sandbox`, `other`, `unusable` or `removed`.
    pub fn record_cni_result(&self, result: &'static str) {
        self.cni_results.get_or_create(&ByResult { result }).inc();
    }

    /// Whether CNI results are followed.
    pub fn set_cni_watched(&self, watched: bool) {
        self.cni_watched.set(watched.into());
    }

    /// Shows a snapshot.
    pub fn update(&self, counts: &Counts, uptime_seconds: f64) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.mappings.set(gauge(counts.mappings));
        self.pods.set(gauge(counts.pods));
        self.refused.set(gauge(counts.refused));
        self.cooling.set(gauge(counts.cooling));
        self.quarantined.set(gauge(counts.quarantined));
        for (protocol, free) in &counts.free {
            let label = ByProtocol {
                protocol: protocol.as_str(),
            };
            self.free.get_or_create(&label).set(gauge(*free));
        }
        self.uptime.set(uptime_seconds);
    }
}
