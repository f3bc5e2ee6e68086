//! The enforcer's metrics.

use std::sync::atomic::AtomicU64;

use portmapping_dataplane::migration::Backend;
use portmapping_enforcer_core::Counts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Labels of the counter of calls.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `hold`, `release`, `apply`, `observe`, `publish`, `read_pod` or `event`.
    pub call: &'static str,
    /// `ok`, `error` or, for `publish`, `conflict`.
    pub outcome: &'static str,
}

/// Labels of the counter of CNI results.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    /// `sandbox`, `other`, `unusable` or `removed`.
    pub result: &'static str,
}

/// Labels of a gauge per protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByProtocol {
    /// TCP, UDP or SCTP.
    pub protocol: &'static str,
}

/// Labels of the backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByBackend {
    /// `iptables-nft`, `iptables-legacy` or `nftables`.
    pub backend: &'static str,
}

/// Labels of a gauge per address family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByFamily {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
}

/// The enforcer's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    calls: Family<CallLabels, Counter>,
    apply_seconds: Histogram,
    backend: Family<ByBackend, Gauge>,
    mappings: Family<ByFamily, Gauge>,
    pods: Gauge,
    refused: Gauge,
    cooling: Gauge,
    quarantined: Gauge,
    free: Family<ByProtocol, Gauge>,
    damaged: Counter,
    repairs: Counter,
    clear_failures: Counter,
    unanswered: Gauge,
    cni_results: Family<ByResult, Counter>,
    cni_watched: Gauge,
    uptime: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers all metrics.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms to 4 s
        let buckets = (0..13).map(|n| 0.001 * f64::from(1 << n));
        let metrics = Self {
            calls: Family::default(),
            apply_seconds: Histogram::new(buckets),
            backend: Family::default(),
            mappings: Family::default(),
            pods: Gauge::default(),
            refused: Gauge::default(),
            cooling: Gauge::default(),
            quarantined: Gauge::default(),
            free: Family::default(),
            damaged: Counter::default(),
            repairs: Counter::default(),
            clear_failures: Counter::default(),
            unanswered: Gauge::default(),
            cni_results: Family::default(),
            cni_watched: Gauge::default(),
            uptime: Gauge::default(),
        };
        registry.register(
            "calls",
            "Calls to the keeper, the packet filter and the API server",
            metrics.calls.clone(),
        );
        registry.register(
            "apply_seconds",
            "Time of one change of the rules",
            metrics.apply_seconds.clone(),
        );
        registry.register(
            "backend",
            "1 for the packet filter in use",
            metrics.backend.clone(),
        );
        registry.register(
            "mappings",
            "Mappings in the kernel, by address family of the pod",
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
            "Released ports in their cool-down, still held",
            metrics.cooling.clone(),
        );
        registry.register(
            "ports_quarantined",
            "Ports in quarantine, because another process used them",
            metrics.quarantined.clone(),
        );
        registry.register(
            "ports_free",
            "Ports that can be allocated",
            metrics.free.clone(),
        );
        registry.register(
            "damage",
            "How often altered rules were found",
            metrics.damaged.clone(),
        );
        registry.register(
            "repairs",
            "Changes that repaired altered rules",
            metrics.repairs.clone(),
        );
        registry.register(
            "conntrack_failures",
            "Failures to delete the conntrack entries of a changed mapping",
            metrics.clear_failures.clone(),
        );
        registry.register(
            "flows_unanswered",
            "TCP flows to mapped ports that no reply answers",
            metrics.unanswered.clone(),
        );
        registry.register(
            "cni_results",
            "CNI result files read or removed, by kind",
            metrics.cni_results.clone(),
        );
        registry.register(
            "cni_results_watched",
            "1 while CNI results are followed, 0 while pods are mapped by their status only",
            metrics.cni_watched.clone(),
        );
        registry.register(
            "uptime_seconds",
            "Seconds since the start of the enforcer",
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

    /// Counts a publication that was refused because the pod has a newer version.
    pub fn record_conflict(&self) {
        let (call, outcome) = ("publish", "conflict");
        self.calls
            .get_or_create(&CallLabels { call, outcome })
            .inc();
    }

    /// Records how long a change of the rules took, in seconds.
    pub fn record_apply(&self, seconds: f64) {
        self.apply_seconds.observe(seconds);
    }

    /// Counts a read that found altered rules.
    pub fn record_damage(&self) {
        self.damaged.inc();
    }

    /// Counts a repair of altered rules.
    pub fn record_repair(&self) {
        self.repairs.inc();
    }

    /// Counts failures to delete conntrack entries.
    pub fn record_clear_failures(&self, more: u64) {
        self.clear_failures.inc_by(more);
    }

    /// Sets the number of TCP flows to mapped ports that no reply answers.
    pub fn set_unanswered(&self, flows: usize) {
        self.unanswered
            .set(i64::try_from(flows).unwrap_or(i64::MAX));
    }

    /// Counts a CNI result: `sandbox`, `other`, `unusable` or `removed`.
    pub fn record_cni_result(&self, result: &'static str) {
        self.cni_results.get_or_create(&ByResult { result }).inc();
    }

    /// Sets the packet filter in use.
    pub fn set_backend(&self, backend: Backend) {
        let backend = backend.as_str();
        self.backend.get_or_create(&ByBackend { backend }).set(1);
    }

    /// Sets whether CNI results are followed.
    pub fn set_cni_watched(&self, watched: bool) {
        self.cni_watched.set(watched.into());
    }

    /// Sets the gauges.
    pub fn update(&self, counts: &Counts, uptime_seconds: f64) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let ipv4 = counts.mappings - counts.ipv6_mappings;
        for (family, count) in [("ipv4", ipv4), ("ipv6", counts.ipv6_mappings)] {
            let label = ByFamily { family };
            self.mappings.get_or_create(&label).set(gauge(count));
        }
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

#[cfg(test)]
mod tests {
    use portmapping_runtime::metrics::{encode, registry};

    use super::*;

    #[test]
    fn mappings_of_both_families_are_counted_apart() {
        let mut registry = registry();
        let counts = Counts {
            pods: 3,
            refused: 0,
            mappings: 5,
            ipv6_mappings: 2,
            cooling: 0,
            quarantined: 0,
            free: Vec::new(),
            dataplane_error: None,
        };
        Metrics::register(&mut registry).update(&counts, 1.0);
        let text = encode(&registry).unwrap();
        for line in [
            r#"portmapping_mappings{family="ipv4"} 3"#,
            r#"portmapping_mappings{family="ipv6"} 2"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
    }
}
