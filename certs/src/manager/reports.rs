//! Where the manager tells how things stand: readiness, counters, log.

use portmapping_runtime::ReadyHandle;
use portmapping_runtime::deadline::chain;
use time::OffsetDateTime;

use super::{ManagerError, Outcome};
use crate::metrics::{CA, Damage, LEAF, Metrics, Operation};
use crate::rotation::{Decision, Flaw};
use crate::secret::Swap;

/// Where the manager tells how things stand.
#[derive(Debug)]
pub struct Reports {
    /// Ready once a certificate is served.
    pub certificate: ReadyHandle,
    /// Ready while the API server trusts what is served.
    pub registration: ReadyHandle,
    /// Counters.
    pub metrics: Metrics,
}

/// What stays true when a look does not come to its end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Whether a certificate is being served.
    pub(super) serving: bool,
    /// Whether the API server trusted us when a look last got to know.
    pub(super) trusted: bool,
}

impl Reports {
    /// Something was issued, and offered to the other replicas.
    pub(super) fn issued(&self, decision: &Decision, swap: Swap, standing: Standing) {
        let (kind, flaw) = match decision {
            Decision::Keep { .. } => return,
            Decision::IssueLeaf(flaw) => ("certificate", flaw),
            Decision::RollCa(flaw) => ("certificate authority", flaw),
        };
        match swap {
            Swap::Conflict => {
                self.metrics.conflicts.inc();
                tracing::debug!("another replica wrote the Secret first");
            }
            Swap::Done => {
                tracing::info!(why = %flaw, "issued a new {kind}");
                // growing old is no damage, nor is a cluster's first certificate
                if standing.serving && *flaw != Flaw::Old {
                    self.repaired("secret");
                }
                self.metrics.issued.get_or_create(&LEAF).inc();
                if matches!(decision, Decision::RollCa(_)) {
                    self.metrics.issued.get_or_create(&CA).inc();
                }
            }
        }
    }

    /// The wall clock was set; certificates are judged anew by the pass that follows.
    pub(super) fn clock_stepped(&self, step: time::Duration) {
        tracing::warn!(
            seconds = step.whole_seconds(),
            "the clock was set: looking at all certificates again"
        );
        self.repaired("clock");
    }

    /// A look found that the API server does not trust what is served.
    pub(super) fn distrusted(&self) {
        let text = "the caBundle of the registration does not cover the certificate being served";
        tracing::warn!("{text}");
        self.repaired("registration");
        self.registration.wait_for(text);
    }

    fn repaired(&self, what: &'static str) {
        self.metrics.repairs.get_or_create(&Damage { what }).inc();
    }

    /// The caBundle was offered to the registration.
    pub(super) fn published(&self, swap: Swap) {
        match swap {
            Swap::Conflict => {
                self.metrics.conflicts.inc();
            }
            Swap::Done => {
                self.metrics.bundle_writes.inc();
                tracing::info!("set the caBundle of the registration");
            }
        }
    }

    /// Another certificate is being served.
    pub(super) fn serving(&self, leaf_ends: OffsetDateTime, ca_ends: OffsetDateTime) {
        tracing::info!(until = %leaf_ends, "serving a certificate");
        let expiry = &self.metrics.expiry;
        expiry.get_or_create(&LEAF).set(leaf_ends.unix_timestamp());
        expiry.get_or_create(&CA).set(ca_ends.unix_timestamp());
        self.certificate.ready();
    }

    /// A look ended. An error says nothing about what the API server trusts: who is ready stays
    /// ready.
    pub(super) fn looked(&self, outcome: &Result<Outcome, ManagerError>, standing: &mut Standing) {
        match outcome {
            Ok(Outcome::InPlace | Outcome::Published) => {
                standing.trusted = true;
                self.registration.ready();
            }
            Ok(Outcome::Unregistered) => {
                standing.trusted = false;
                self.registration
                    .wait_for("no webhook of ours is registered");
            }
            Err(error) => {
                let text = chain(error);
                self.metrics.errors.get_or_create(&operation(error)).inc();
                tracing::warn!(error = text, "certificates: trying again");
                if !standing.serving {
                    self.certificate.wait_for(text.as_str());
                }
                if !standing.trusted {
                    self.registration.wait_for(text);
                }
            }
        }
    }
}

fn operation(error: &ManagerError) -> Operation {
    let operation = match error {
        ManagerError::Store(_) => "secret",
        ManagerError::Registration(_) => "registration",
        ManagerError::Issue(_) => "issue",
        ManagerError::Resolver(_) => "serve",
        ManagerError::Contended(_) => "contended",
    };
    Operation { operation }
}
