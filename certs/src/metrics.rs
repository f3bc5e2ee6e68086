//! Metrics of certificates.

use portmapping_runtime::metrics::Labels;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of the serving certificate.
pub(crate) const LEAF: Labels<1> = [("certificate", "leaf")];
/// Labels of the CA.
pub(crate) const CA: Labels<1> = [("certificate", "ca")];

/// Counters and gauges of this crate; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) expiry: Family<Labels<1>, Gauge>,
    pub(crate) issued: Family<Labels<1>, Counter>,
    pub(crate) bundle_writes: Counter,
    pub(crate) conflicts: Counter,
    /// By `operation`, the one that failed.
    pub(crate) errors: Family<Labels<1>, Counter>,
    /// By `what`: what another program had damaged.
    pub(crate) repairs: Family<Labels<1>, Counter>,
    pub(crate) loads: Counter,
}

impl Metrics {
    /// Registers the metrics under their names.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the certificate in use and its CA expire",
            self.expiry.clone(),
        );
        registry.register(
            "certificate_issued",
            "Certificates that this replica issued",
            self.issued.clone(),
        );
        registry.register(
            "certificate_bundle_writes",
            "Times this replica set the caBundle of the webhook's registration",
            self.bundle_writes.clone(),
        );
        registry.register(
            "certificate_conflicts",
            "Writes that another replica did first",
            self.conflicts.clone(),
        );
        registry.register(
            "certificate_errors",
            "Failed passes over Secret, registration or files",
            self.errors.clone(),
        );
        registry.register(
            "certificate_repairs",
            "Damage that this replica found: Secret, registration",
            self.repairs.clone(),
        );
        registry.register(
            "certificate_loads",
            "Certificates loaded from files",
            self.loads.clone(),
        );
    }
}
