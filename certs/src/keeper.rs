//! The task that keeps one good certificate in the Secret, in the registration and in the server.
//!
//! It looks at all three again every period, so a Secret that was deleted or damaged, a caBundle
//! that was emptied and a clock that was set are healed by the same path that started it all.

use std::sync::Arc;
use std::time::Duration;

use portmapping_runtime::ReadyHandle;
use portmapping_runtime::deadline::chain;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::bundle::{Registration, RegistrationError, Seen};
use crate::issue::{self, IssueError, Lifetimes, Material, Names};
use crate::metrics::{CA, LEAF, Metrics, Operation};
use crate::resolver::{Resolver, ResolverError};
use crate::rotation::{self, Decision};
use crate::secret::{Store, StoreError, Stored, Swap};

/// Races for Secret or registration that a pass loses before it gives up.
const SWAP_TRIES: usize = 8;
/// First wait after a failed pass; doubles up to the period.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Wait for a registration that does not exist (yet).
const UNREGISTERED_WAIT: Duration = Duration::from_secs(2);

/// What to keep, and how often to look.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the serving certificate.
    pub names: Names,
    /// Lifetimes of what is issued.
    pub lifetimes: Lifetimes,
    /// Time between two looks while all is well.
    pub period: Duration,
}

/// Where the keeper tells how things stand.
#[derive(Debug)]
pub struct Reports {
    /// Ready once a certificate is served.
    pub certificate: ReadyHandle,
    /// Ready while the API server trusts what is served.
    pub registration: ReadyHandle,
    /// Counters.
    pub metrics: Metrics,
}

/// Keeps the certificate; see the module.
#[derive(Debug)]
pub struct Keeper<S, R> {
    config: Config,
    store: S,
    registration: R,
    resolver: Arc<Resolver>,
    reports: Reports,
    clock: fn() -> OffsetDateTime,
    served: Option<Served>,
    /// Whether the last look that came to an end found the API server trusting us.
    trusted: bool,
}

#[derive(Debug)]
struct Served {
    material: Material,
    ends: OffsetDateTime,
}

/// Material that was judged good.
struct Agreed {
    material: Material,
    leaf_ends: OffsetDateTime,
    ca_ends: OffsetDateTime,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Secret, registration and server agree.
    InPlace,
    /// The caBundle was set just now.
    Published,
    /// There is nothing to put a caBundle into.
    Unregistered,
}

/// Why a pass did not come to its end. What is served stays served.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The Secret.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registration.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// Issuing.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// Serving.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// Replicas kept overtaking each other.
    #[error("the {0} changed again and again while it was being written")]
    Contended(&'static str),
}

impl KeeperError {
    fn operation(&self) -> Operation {
        let operation = match self {
            Self::Store(_) => "secret",
            Self::Registration(_) => "registration",
            Self::Issue(_) => "issue",
            Self::Resolver(_) => "serve",
            Self::Contended(_) => "contended",
        };
        Operation { operation }
    }
}

impl<S: Store, R: Registration> Keeper<S, R> {
    /// A keeper that has not looked yet.
    pub fn new(
        config: Config,
        store: S,
        registration: R,
        resolver: Arc<Resolver>,
        reports: Reports,
    ) -> Self {
        let clock = OffsetDateTime::now_utc;
        Self {
            config,
            store,
            registration,
            resolver,
            reports,
            clock,
            served: None,
            trusted: false,
        }
    }

    /// Reads another clock than the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> OffsetDateTime) -> Self {
        self.clock = clock;
        self
    }

    /// Looks and heals until the token is cancelled. Never ends on an error.
    pub async fn run(mut self, token: CancellationToken) {
        let mut restless: u32 = 0;
        loop {
            // a pass may be dropped anywhere: the next one starts from what is really there
            let outcome = tokio::select! {
                () = token.cancelled() => return,
                outcome = self.pass() => outcome,
            };
            restless = match outcome {
                Ok(Outcome::InPlace | Outcome::Unregistered) => 0,
                // look soon whether it stayed, but do not race whoever keeps undoing it
                Ok(Outcome::Published) | Err(_) => restless.saturating_add(1),
            };
            let wait = match outcome {
                Ok(Outcome::Unregistered) => UNREGISTERED_WAIT.min(self.config.period),
                _ if restless == 0 => self.config.period,
                _ => backoff(restless).min(self.config.period),
            };
            tokio::select! {
                () = token.cancelled() => return,
                () = tokio::time::sleep(jittered(wait)) => {}
            }
        }
    }

    /// One look at everything, with whatever repair it takes.
    pub async fn pass(&mut self) -> Result<Outcome, KeeperError> {
        let outcome = self.try_pass().await;
        self.report(&outcome);
        outcome
    }

    async fn try_pass(&mut self) -> Result<Outcome, KeeperError> {
        for _try in 0..SWAP_TRIES {
            // Before the Secret: a registration found unchanged when writing to it then proves
            // that no replica has put a newer Secret's bundle into it in between.
            let seen = self.registration.read().await;
            let agreed = self.agree().await?;
            let published = match seen {
                Ok(Some(seen)) => self.publish(&seen, &agreed.material.ca_bundle).await,
                Ok(None) => Ok(Some(Outcome::Unregistered)),
                Err(error) => Err(error.into()),
            };
            if self.may_serve(&agreed.material, published.as_ref().ok().copied().flatten()) {
                self.serve(agreed)?;
            }
            if let Some(outcome) = published? {
                return Ok(outcome);
            }
        }
        Err(KeeperError::Contended("registration"))
    }

    /// Reads the Secret, and renews it as often as it takes to read something good.
    async fn agree(&self) -> Result<Agreed, KeeperError> {
        for _try in 0..SWAP_TRIES {
            let Stored { version, material } = match self.store.read().await? {
                Some(stored) => stored,
                None => self.store.create().await?,
            };
            let now = (self.clock)();
            let decision = rotation::decide(&material, &self.config.names, now);
            let fresh = issue::renew(
                &material,
                &decision,
                &self.config.names,
                self.config.lifetimes,
                now,
            )?;
            match (decision, fresh) {
                (Decision::Keep { leaf_ends, ca_ends }, _) => {
                    return Ok(Agreed {
                        material,
                        leaf_ends,
                        ca_ends,
                    });
                }
                (decision, Some(fresh)) => {
                    let swap = self.store.replace(&version, &fresh).await?;
                    self.count_issued(&decision, swap);
                }
                (_, None) => {}
            }
        }
        Err(KeeperError::Contended("Secret"))
    }

    fn count_issued(&self, decision: &Decision, swap: Swap) {
        let metrics = &self.reports.metrics;
        let (kind, flaw) = match decision {
            Decision::Keep { .. } => return,
            Decision::IssueLeaf(flaw) => ("certificate", flaw),
            Decision::RollCa(flaw) => ("certificate authority", flaw),
        };
        match swap {
            Swap::Conflict => {
                metrics.conflicts.inc();
                tracing::debug!("another replica wrote the Secret first");
            }
            Swap::Done => {
                tracing::info!(why = %flaw, "issued a new {kind}");
                metrics.issued.get_or_create(&LEAF).inc();
                if matches!(decision, Decision::RollCa(_)) {
                    metrics.issued.get_or_create(&CA).inc();
                }
            }
        }
    }

    /// None where somebody else wrote to the registration since it was seen.
    async fn publish(&self, seen: &Seen, bundle: &str) -> Result<Option<Outcome>, KeeperError> {
        if seen.entries.is_empty() {
            return Ok(Some(Outcome::Unregistered));
        }
        if seen.carries(bundle) {
            return Ok(Some(Outcome::InPlace));
        }
        match self.registration.write(seen, bundle).await? {
            Swap::Conflict => {
                self.reports.metrics.conflicts.inc();
                Ok(None)
            }
            Swap::Done => {
                self.reports.metrics.bundle_writes.inc();
                tracing::info!("set the caBundle of the registration");
                Ok(Some(Outcome::Published))
            }
        }
    }

    /// A certificate of a new authority is served only once a look has found its bundle in place:
    /// until then the API server trusts the old one, and maybe nothing else.
    fn may_serve(&self, material: &Material, outcome: Option<Outcome>) -> bool {
        let Some(served) = &self.served else {
            return true;
        };
        if served.material.leaf == material.leaf && served.material.leaf_key == material.leaf_key {
            return false;
        }
        let same_authority = rotation::signing_authority(&served.material.ca_bundle)
            == rotation::signing_authority(&material.ca_bundle);
        same_authority || outcome == Some(Outcome::InPlace) || served.ends <= (self.clock)()
    }

    fn serve(&mut self, agreed: Agreed) -> Result<(), KeeperError> {
        let Agreed {
            material,
            leaf_ends,
            ca_ends,
        } = agreed;
        self.resolver.install(&material.leaf, &material.leaf_key)?;
        tracing::info!(until = %leaf_ends, "serving a certificate");
        let expiry = &self.reports.metrics.expiry;
        expiry.get_or_create(&LEAF).set(leaf_ends.unix_timestamp());
        expiry.get_or_create(&CA).set(ca_ends.unix_timestamp());
        self.reports.certificate.ready();
        self.served = Some(Served {
            material,
            ends: leaf_ends,
        });
        Ok(())
    }

    /// An error says nothing about what the API server trusts: who is ready stays ready.
    fn report(&mut self, outcome: &Result<Outcome, KeeperError>) {
        match outcome {
            Ok(Outcome::InPlace | Outcome::Published) => {
                self.trusted = true;
                self.reports.registration.ready();
            }
            Ok(Outcome::Unregistered) => {
                self.trusted = false;
                self.reports
                    .registration
                    .wait_for("no webhook of ours is registered");
            }
            Err(error) => {
                let text = chain(error);
                self.reports
                    .metrics
                    .errors
                    .get_or_create(&error.operation())
                    .inc();
                tracing::warn!(error = text, "certificates: trying again");
                if self.served.is_none() {
                    self.reports.certificate.wait_for(text.as_str());
                }
                if !self.trusted {
                    self.reports.registration.wait_for(text);
                }
            }
        }
    }
}

fn backoff(tries: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << tries.saturating_sub(1).min(16))
}

/// Replicas that started together shall not look together for ever.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests;
