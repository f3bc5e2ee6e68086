//! What the manager reports: readiness, counters, log.

use portmapping_runtime::ReadyHandle;
use portmapping_runtime::deadline::chain;
use time::OffsetDateTime;

use super::{BundleState, ManagerError};
use crate::metrics::{CA, LEAF, Metrics};
use crate::rotation::{Decision, Flaw};
use crate::secret::Swap;

/// Where the manager reports.
#[derive(Clone, Debug)]
pub struct Reports {
    /// Ready from the first certificate that is served on.
    pub certificate: ReadyHandle,
    /// Ready while the API server trusts what is served, as far as is known.
    pub registration: ReadyHandle,
    /// Counters.
    pub metrics: Metrics,
}

impl Reports {
    /// A certificate was issued and written to the Secret, unless another replica wrote first.
    pub(super) fn issued(&self, decision: &Decision, swap: Swap) {
        let (kind, flaw) = match decision {
            Decision::Keep { .. } => return,
            Decision::IssueLeaf(flaw) => ("certificate", flaw),
            Decision::RollCa(flaw) => ("CA and certificate", flaw),
        };
        if swap == Swap::Conflict {
            self.metrics.conflicts.inc();
            tracing::debug!("another replica wrote the Secret first; reading it again");
            return;
        }
        tracing::info!(reason = %flaw, "issued a new {kind}");
        // neither age nor the first certificate of a cluster is damage
        if self.certificate.is_ready() && *flaw != Flaw::Old {
            self.repaired("secret");
        }
        self.metrics.issued.get_or_create(&LEAF).inc();
        if matches!(decision, Decision::RollCa(_)) {
            self.metrics.issued.get_or_create(&CA).inc();
        }
    }

    /// The API server does not trust what is served. Counted once.
    pub(super) fn distrusted(&self) {
        if self.registration.is_ready() {
            let text = "the caBundle of the registration does not cover the certificate in use";
            tracing::warn!("{text}; setting it again");
            self.repaired("registration");
            self.registration.wait_for(text);
        }
    }

    fn repaired(&self, what: &'static str) {
        self.metrics.repairs.get_or_create(&[("what", what)]).inc();
    }

    /// The caBundle was set, unless another program wrote first.
    pub(super) fn published(&self, swap: Swap) {
        if swap == Swap::Conflict {
            self.metrics.conflicts.inc();
        } else {
            self.metrics.bundle_writes.inc();
            tracing::info!("set the caBundle of the registration");
        }
    }

    /// Another certificate is served from now on.
    pub(super) fn serving(&self, leaf_ends: OffsetDateTime, ca_ends: OffsetDateTime) {
        tracing::info!(until = %leaf_ends, "serving a certificate");
        let expiry = &self.metrics.expiry;
        expiry.get_or_create(&LEAF).set(leaf_ends.unix_timestamp());
        expiry.get_or_create(&CA).set(ca_ends.unix_timestamp());
        self.certificate.ready();
    }

    /// A pass ended. An error says nothing about what the API server trusts, so a part that is
    /// ready stays ready.
    pub(super) fn passed(&self, state: &Result<BundleState, ManagerError>) {
        match state {
            Ok(BundleState::InPlace | BundleState::Published) => self.registration.ready(),
            Ok(BundleState::Unregistered) => {
                let text = "no MutatingWebhookConfiguration names our service";
                self.registration.wait_for(text);
            }
            Err(error) => {
                let text = chain(error);
                let labels = [("operation", operation(error))];
                self.metrics.errors.get_or_create(&labels).inc();
                tracing::warn!(error = text, "certificates: the pass failed; trying again");
                for part in [&self.certificate, &self.registration] {
                    if !part.is_ready() {
                        part.wait_for(text.as_str());
                    }
                }
            }
        }
    }
}

fn operation(error: &ManagerError) -> &'static str {
    match error {
        ManagerError::Store(_) => "secret",
        ManagerError::Registration(_) => "registration",
        ManagerError::Issue(_) => "issue",
        ManagerError::Resolver(_) => "serve",
        ManagerError::Contended(_) => "contended",
    }
}
