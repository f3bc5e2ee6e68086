//! Metrics of certificates.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Which certificate of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Kind {
    certificate: &'static str,
}

/// The serving certificate.
pub(crate) const LEAF: Kind = Kind {
    certificate: "leaf",
};
/// The CA.
pub(crate) const CA: Kind = Kind { certificate: "ca" };

/// The operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Operation {
    pub(crate) operation: &'static str,
}

/// What another program had damaged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Damage {
    pub(crate) what: &'static str,
}

/// Counters and gauges of this crate; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) expiry: Family<Kind, Gauge>,
    pub(crate) issued: Family<Kind, Counter>,
    pub(crate) bundle_writes: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) errors: Family<Operation, Counter>,
    pub(crate) repairs: Family<Damage, Counter>,
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
