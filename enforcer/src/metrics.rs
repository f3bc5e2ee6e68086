//! The enforcer's metrics.

use std::sync::atomic::AtomicU64;

use portmapping_dataplane::detect::Chosen;
use portmapping_enforcer_core::Counts;
use portmapping_runtime::metrics::{Labels, add};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The enforcer's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// By `call` (`hold`, `release`, `apply`, `observe`, `publish`, `read_pod`, `read_flows` or `event`) and
    /// `outcome` (`ok`, `error` or, for `publish`, `conflict`).
    calls: Family<Labels<2>, Counter>,
    apply_seconds: Histogram,
    /// By `backend`: `iptables-nft`, `iptables-legacy` or `nftables`, and `reason`.
    backend: Family<Labels<2>, Gauge>,
    /// By `family`: `ipv4` or `ipv6`.
    mappings: Family<Labels<1>, Gauge>,
    pods: Gauge,
    refused: Gauge,
    cooling: Gauge,
    quarantined: Gauge,
    /// By `protocol`: TCP, UDP or SCTP.
    free: Family<Labels<1>, Gauge>,
    damaged: Counter,
    repairs: Counter,
    clear_failures: Counter,
    unanswered: Gauge,
    /// By `result`: `sandbox`, `other`, `unusable` or `removed`.
    cni_results: Family<Labels<1>, Counter>,
    cni_watched: Gauge,
    uptime: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers all metrics.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms to 4 s
        let buckets = (0..13).map(|n| 0.001 * f64::from(1 << n));
        let apply_seconds = Histogram::new(buckets);
        registry.register(
            "apply_seconds",
            "Time of one change of the rules",
            apply_seconds.clone(),
        );
        Self {
            calls: add(
                registry,
                "calls",
                "Calls to the keeper, the packet filter and the API server",
            ),
            apply_seconds,
            backend: add(registry, "backend", "1 for the packet filter in use"),
            mappings: add(
                registry,
                "mappings",
                "Mappings in the kernel, by address family of the pod",
            ),
            pods: add(registry, "pods", "Pods that ask for host ports"),
            refused: add(registry, "pods_refused", "Pods that cannot be mapped now"),
            cooling: add(
                registry,
                "ports_cooling",
                "Released ports in their cool-down, still held",
            ),
            quarantined: add(
                registry,
                "ports_quarantined",
                "Ports in quarantine: neither held nor allocated",
            ),
            free: add(registry, "ports_free", "Ports that can be allocated"),
            damaged: add(registry, "damage", "How often altered rules were found"),
            repairs: add(registry, "repairs", "Changes that repaired altered rules"),
            clear_failures: add(
                registry,
                "conntrack_failures",
                "Failures to delete the conntrack entries of a changed mapping",
            ),
            unanswered: add(
                registry,
                "flows_unanswered",
                "TCP flows to mapped ports that no reply answers",
            ),
            cni_results: add(
                registry,
                "cni_results",
                "CNI result files read or removed, by kind",
            ),
            cni_watched: add(
                registry,
                "cni_results_watched",
                "1 while CNI results are followed, 0 while pods are mapped by their status only",
            ),
            uptime: add(
                registry,
                "uptime_seconds",
                "Seconds since the start of the enforcer",
            ),
        }
    }

    /// Counts a call.
    pub fn record_call(&self, call: &'static str, ok: bool) {
        let outcome = if ok { "ok" } else { "error" };
        self.calls
            .get_or_create(&[("call", call), ("outcome", outcome)])
            .inc();
    }

    /// Counts a publication that was refused because the pod has a newer version.
    pub fn record_conflict(&self) {
        let labels = [("call", "publish"), ("outcome", "conflict")];
        self.calls.get_or_create(&labels).inc();
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
        self.cni_results.get_or_create(&[("result", result)]).inc();
    }

    /// Sets the packet filter in use.
    pub fn set_backend(&self, chosen: &Chosen) {
        let labels = [
            ("backend", chosen.backend.as_str()),
            ("reason", chosen.cause),
        ];
        self.backend.get_or_create(&labels).set(1);
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
            let label = [("family", family)];
            self.mappings.get_or_create(&label).set(gauge(count));
        }
        self.pods.set(gauge(counts.pods));
        self.refused.set(gauge(counts.refused));
        self.cooling.set(gauge(counts.cooling));
        self.quarantined.set(gauge(counts.quarantined));
        for (protocol, free) in &counts.free {
            let label = [("protocol", protocol.as_str())];
            self.free.get_or_create(&label).set(gauge(*free));
        }
        self.uptime.set(uptime_seconds);
    }
}

#[cfg(test)]
mod tests {
    use portmapping_dataplane::Backend;
    use portmapping_runtime::metrics::{encode, registry};

    use super::*;

    #[test]
    fn one_series_names_the_backend_and_why_it_is_used() {
        let mut registry = registry();
        Metrics::register(&mut registry).set_backend(&Chosen {
            backend: Backend::Nftables,
            reason: "iptables cannot be used: it is not installed".to_owned(),
            cause: "iptables unusable",
            automatic: true,
        });
        let text = encode(&registry).unwrap();
        let series: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("portmapping_backend"))
            .collect();
        assert_eq!(
            series,
            [r#"portmapping_backend{backend="nftables",reason="iptables unusable"} 1"#]
        );
    }

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
