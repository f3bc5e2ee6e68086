//! The task that keeps one good certificate in the Secret, in the registration and in the server.
//!
//! It looks at all three again every period, so a Secret that was deleted or damaged, a caBundle
//! that was emptied and a clock that was set are healed by the same path that started it all.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bundle::{Registration, RegistrationError, Seen};
use crate::issue::{self, IssueError};
use crate::material::{self, Lifetimes, Material, Names};
use crate::resolver::{Resolver, ResolverError};
use crate::rotation::{self, Decision};
use crate::secret::{Store, StoreError, Stored, Swap};
use clock::Clock;
use reports::Standing;

mod clock;
mod reports;

pub use reports::Reports;

/// Races for Secret or registration that a pass loses before it gives up.
const SWAP_TRIES: usize = 8;
/// First wait after a failed pass; doubles up to the period.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// Wait for a registration that does not exist (yet).
const UNREGISTERED_WAIT: Duration = Duration::from_secs(2);

/// How long a new authority is in the caBundle before one of its leaves is served: each API server
/// learns of the new bundle by a watch of its own.
const SETTLE: Duration = Duration::from_secs(10);
/// Looks in the life of a leaf, at the least: a replica must not sleep through its renewal.
const LOOKS_PER_LIFE: u32 = 10;

/// What to keep, and how often to look.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the serving certificate.
    pub names: Names,
    /// Lifetimes of what is issued.
    pub lifetimes: Lifetimes,
    /// Time between two looks while all is well; less where leaves are short-lived.
    pub period: Duration,
}

/// Keeps the certificate; see the module.
#[derive(Debug)]
pub struct CertManager<S, R> {
    config: Config,
    store: S,
    registration: R,
    resolver: Arc<Resolver>,
    reports: Reports,
    clock: Clock,
    served: Option<Served>,
    in_place: Option<InPlace>,
    standing: Standing,
}

/// A bundle that the registration was found to carry.
#[derive(Debug)]
struct InPlace {
    bundle: String,
    /// Monotonic: a clock that is set must not shorten the wait.
    since: Instant,
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
pub enum ManagerError {
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

impl<S: Store, R: Registration> CertManager<S, R> {
    /// A manager that has not looked yet.
    pub fn new(
        mut config: Config,
        store: S,
        registration: R,
        resolver: Arc<Resolver>,
        reports: Reports,
    ) -> Self {
        config.period = config.period.min(config.lifetimes.leaf / LOOKS_PER_LIFE);
        Self {
            config,
            store,
            registration,
            resolver,
            reports,
            clock: Clock::new(OffsetDateTime::now_utc),
            served: None,
            in_place: None,
            standing: Standing::default(),
        }
    }

    /// Reads another clock than the system's.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> OffsetDateTime) -> Self {
        self.clock = Clock::new(clock);
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
    pub async fn pass(&mut self) -> Result<Outcome, ManagerError> {
        if let Some(step) = self.clock.step() {
            self.reports.clock_stepped(step);
        }
        let outcome = self.try_pass().await;
        self.reports.looked(&outcome, &mut self.standing);
        outcome
    }

    async fn try_pass(&mut self) -> Result<Outcome, ManagerError> {
        for _try in 0..SWAP_TRIES {
            // Before the Secret: a registration found unchanged when writing to it then proves
            // that no replica has put a newer Secret's bundle into it in between.
            let seen = self.registration.read().await;
            if let Ok(seen) = &seen {
                self.note_trust(seen.as_ref());
            }
            let agreed = self.agree().await?;
            let published = match seen {
                Ok(Some(seen)) => self.publish(&seen, &agreed.material.ca_bundle).await,
                Ok(None) => Ok(Some(Outcome::Unregistered)),
                Err(error) => Err(error.into()),
            };
            self.note_place(&agreed.material.ca_bundle, &published);
            if self.may_serve(&agreed.material, published.as_ref().ok().copied().flatten()) {
                self.serve(agreed)?;
            }
            if let Some(outcome) = published? {
                return Ok(outcome);
            }
        }
        Err(ManagerError::Contended("registration"))
    }

    /// What is served may have lost the API server's trust since the last look. Known before any
    /// repair, so that a repair that fails does not leave the program looking ready.
    fn note_trust(&mut self, seen: Option<&Seen>) {
        let Some(served) = &self.served else { return };
        let signer = material::signing_authority(&served.material.ca_bundle);
        let trusted = seen.is_some_and(|seen| {
            let mut bundles = seen.entries.iter().map(|entry| &entry.ca_bundle);
            !seen.entries.is_empty()
                && bundles.all(|bundle| {
                    let authorities = String::from_utf8_lossy(bundle);
                    material::authorities(&authorities)
                        .any(|one| material::signing_authority(one) == signer)
                })
        });
        if self.standing.trusted && !trusted {
            self.standing.trusted = false;
            self.reports.distrusted();
        }
    }

    /// Since when the registration has carried this bundle without a gap that was seen.
    fn note_place(&mut self, bundle: &str, published: &Result<Option<Outcome>, ManagerError>) {
        match published {
            Ok(Some(Outcome::InPlace | Outcome::Published)) => {
                if self.in_place.as_ref().is_none_or(|it| it.bundle != bundle) {
                    self.in_place = Some(InPlace {
                        bundle: bundle.to_owned(),
                        since: Instant::now(),
                    });
                }
            }
            Ok(_) => self.in_place = None,
            // says nothing about what is registered
            Err(_) => {}
        }
    }

    /// Reads the Secret, and renews it as often as it takes to read something good.
    async fn agree(&self) -> Result<Agreed, ManagerError> {
        for _try in 0..SWAP_TRIES {
            let Stored { version, material } = match self.store.read().await? {
                Some(stored) => stored,
                None => self.store.create().await?,
            };
            let now = self.clock.now();
            let decision = rotation::decide(&material, &self.config.names, now);
            let names = &self.config.names;
            let held = match &decision {
                Decision::RollCa(_) => self.with_served_authorities(&material),
                Decision::Keep { .. } | Decision::IssueLeaf(_) => material.clone(),
            };
            let fresh = issue::renew(&held, &decision, names, self.config.lifetimes, now)?;
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
                    self.reports.issued(&decision, swap, self.standing);
                }
                (_, None) => {}
            }
        }
        Err(ManagerError::Contended("Secret"))
    }

    /// The material, trusting also what signed the certificate being served: the other replicas
    /// serve it too, and a Secret that was deleted does not know any more.
    fn with_served_authorities(&self, material: &Material) -> Material {
        let mut held = material.clone();
        if let Some(served) = &self.served
            && held.ca_bundle != served.material.ca_bundle
        {
            held.ca_bundle.insert_str(0, &served.material.ca_bundle);
        }
        held
    }

    /// None where somebody else wrote to the registration since it was seen.
    async fn publish(&self, seen: &Seen, bundle: &str) -> Result<Option<Outcome>, ManagerError> {
        if seen.entries.is_empty() {
            return Ok(Some(Outcome::Unregistered));
        }
        if seen.carries(bundle) {
            return Ok(Some(Outcome::InPlace));
        }
        let swap = self.registration.write(seen, bundle).await?;
        self.reports.published(swap);
        Ok((swap == Swap::Done).then_some(Outcome::Published))
    }

    /// A certificate of a new authority is served only once its bundle has been in place for a
    /// while: until then an API server may trust the old one and nothing else.
    fn may_serve(&self, material: &Material, outcome: Option<Outcome>) -> bool {
        let Some(served) = &self.served else {
            return true;
        };
        if served.material.leaf == material.leaf && served.material.leaf_key == material.leaf_key {
            return false;
        }
        let same_authority = material::signing_authority(&served.material.ca_bundle)
            == material::signing_authority(&material.ca_bundle);
        let now = self.clock.now();
        same_authority
            || served.ends <= now
            || outcome == Some(Outcome::InPlace) && self.has_settled(served.ends - now)
    }

    /// Short-lived certificates leave less time to wait: at most a quarter of what is `left`.
    fn has_settled(&self, left: time::Duration) -> bool {
        let left = Duration::try_from(left).unwrap_or_default();
        let since = self.in_place.as_ref().map(|it| it.since.elapsed());
        since.is_some_and(|since| since >= SETTLE.min(left / 4))
    }

    fn serve(&mut self, agreed: Agreed) -> Result<(), ManagerError> {
        let Agreed {
            material,
            leaf_ends,
            ca_ends,
        } = agreed;
        self.resolver.install(&material.leaf, &material.leaf_key)?;
        self.reports.serving(leaf_ends, ca_ends);
        self.standing.serving = true;
        self.served = Some(Served {
            material,
            ends: leaf_ends,
        });
        Ok(())
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
