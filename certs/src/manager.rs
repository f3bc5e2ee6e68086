//! The task that keeps one valid certificate in the Secret, in the registration and in the server.
//!
//! Each pass compares all three and repairs what differs. A pass runs in each period, and at once when
//! the registration has changed: the API server refuses annotated pods while its caBundle is missing.
//! A Secret that was deleted or damaged, a caBundle that was emptied and a clock that was set are
//! repaired by the path of the first start.

use std::sync::Arc;
use std::time::Duration;

use portmapping_shared::Backoff;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bundle::{Registered, Registration, RegistrationError};
use crate::issue::{self, IssueError};
use crate::material::{self, Lifetimes, Material, Names};
use crate::resolver::{Resolver, ResolverError};
use crate::rotation::{self, Decision};
use crate::secret::{Store, StoreError, Stored, Swap};

mod reports;

pub use reports::Reports;

/// Attempts of a pass to write the Secret or the registration before another replica does.
const SWAP_TRIES: usize = 8;
/// First wait after a failed pass; the longest is the period.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Least time between two passes: another program that undoes each repair is not answered more often.
const PASS_GAP: Duration = Duration::from_millis(250);
/// Wait for a registration that does not exist (yet).
const UNREGISTERED_WAIT: Duration = Duration::from_secs(2);
/// Waits are up to this share longer or shorter, so that replicas that started together do not
/// read the Secret together for ever.
const JITTER: f64 = 0.2;

/// How long a new CA is in the caBundle before a certificate of it is served: each API server
/// learns of the new bundle by a watch of its own.
const SETTLE: Duration = Duration::from_secs(10);
/// Passes in the life of a leaf, at least, so that a replica does not miss its renewal.
const PASSES_PER_LIFE: u32 = 10;

/// What to keep, and how often to check it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of the serving certificate.
    pub names: Names,
    /// Lifetimes of what is issued.
    pub lifetimes: Lifetimes,
    /// Time between two passes while all is well; less where leaves are short-lived.
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
    clock: fn() -> OffsetDateTime,
    served: Option<Served>,
    in_place: Option<InPlace>,
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

impl Served {
    /// Returns whether a client that trusts this bundle accepts what is served.
    fn trusted_by(&self, bundle: &str) -> bool {
        let signer = material::signing_authority(&self.material.ca_bundle);
        material::authorities(bundle).any(|one| material::signing_authority(one) == signer)
    }
}

/// Material of the Secret that is valid.
struct Agreed {
    material: Material,
    leaf_ends: OffsetDateTime,
    ca_ends: OffsetDateTime,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleState {
    /// Secret, registration and server agree.
    InPlace,
    /// The pass set the caBundle.
    Published,
    /// There is no registration to set the caBundle of.
    Unregistered,
}

/// Why a pass failed. The certificate that is served stays the same.
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
    /// Other replicas wrote first, each time.
    #[error("other replicas wrote the {0} first, {SWAP_TRIES} times in a row")]
    Contended(&'static str),
}

impl<S: Store, R: Registration + Clone> CertManager<S, R> {
    /// Returns a manager that has read nothing yet.
    pub fn new(
        mut config: Config,
        store: S,
        registration: R,
        resolver: Arc<Resolver>,
        reports: Reports,
    ) -> Self {
        config.period = config.period.min(config.lifetimes.leaf / PASSES_PER_LIFE);
        Self {
            config,
            store,
            registration,
            resolver,
            reports,
            clock: OffsetDateTime::now_utc,
            served: None,
            in_place: None,
        }
    }

    /// Returns this manager with other clients. It knows what is served, as a new one would not.
    #[must_use]
    pub fn with_clients(self, store: S, registration: R) -> Self {
        Self {
            store,
            registration,
            ..self
        }
    }

    /// Runs passes until the token is cancelled, and returns the manager. An error never ends it.
    pub async fn run(mut self, token: CancellationToken) -> Self {
        let registration = self.registration.clone();
        let changed = Notify::new();
        tokio::select! {
            () = self.run_passes(token, &changed) => {}
            () = registration.watch(&changed) => {}
        }
        self
    }

    async fn run_passes(&mut self, token: CancellationToken, changed: &Notify) {
        let period = self.config.period;
        let backoff = Backoff {
            first: FIRST_WAIT,
            longest: period,
        };
        let mut unsettled: u32 = 0;
        loop {
            // a pass may be dropped anywhere: the next one starts from what it reads
            let Some(state) = token.run_until_cancelled(self.pass()).await else {
                return;
            };
            let jitter = rand::random_range(-JITTER..JITTER);
            let wait = match state {
                // check soon whether it stayed, but later each time that another program undoes it
                Ok(BundleState::Published) | Err(_) => {
                    unsettled = unsettled.saturating_add(1);
                    backoff.after(unsettled, jitter)
                }
                Ok(state) => {
                    unsettled = 0;
                    let wait = match state {
                        BundleState::Unregistered => UNREGISTERED_WAIT.min(period),
                        _ => period,
                    };
                    wait.min(self.before_the_end()).mul_f64(1.0 + jitter)
                }
            };
            let waiting = async {
                tokio::time::sleep(PASS_GAP.min(wait)).await;
                // a change during the pass, our own included, is a permit that ends this at once
                let _either =
                    tokio::time::timeout(wait.saturating_sub(PASS_GAP), changed.notified()).await;
            };
            if token.run_until_cancelled(waiting).await.is_none() {
                return;
            }
        }
    }

    /// A share of what is left of the served certificate: a replica with other flags may have issued it.
    fn before_the_end(&self) -> Duration {
        let ends = self.served.as_ref().map(|it| it.ends - (self.clock)());
        let left = ends.and_then(|left| Duration::try_from(left).ok());
        PASS_GAP.max(left.unwrap_or_default() / PASSES_PER_LIFE)
    }

    /// Reads everything once and repairs what differs.
    pub async fn pass(&mut self) -> Result<BundleState, ManagerError> {
        let state = self.try_pass().await;
        self.reports.passed(&state);
        state
    }

    async fn try_pass(&mut self) -> Result<BundleState, ManagerError> {
        for _try in 0..SWAP_TRIES {
            // Before the Secret: a registration found unchanged when writing to it then proves
            // that no replica has put a newer Secret's bundle into it in between.
            let registered = self.registration.read().await;
            if let Ok(registered) = &registered {
                self.check_trust(registered.as_ref());
            }
            let agreed = self
                .agree(registered.as_ref().ok().and_then(Option::as_ref))
                .await?;
            let bundle = &agreed.material.ca_bundle;
            let published = match registered {
                Ok(Some(registered)) => self.publish(&registered, bundle).await,
                Ok(None) => Ok(Some(BundleState::Unregistered)),
                Err(error) => Err(error.into()),
            };
            // an error says nothing about what is registered
            if let Ok(state) = published {
                self.record_in_place(bundle, state);
            }
            if self.may_serve(&agreed.material, published.as_ref().ok().copied().flatten()) {
                self.serve(agreed)?;
            }
            if let Some(state) = published? {
                return Ok(state);
            }
        }
        Err(ManagerError::Contended("registration"))
    }

    /// Reports that the API server no longer trusts what is served. Before any repair, so that a
    /// repair that fails does not leave the program looking ready.
    fn check_trust(&self, registered: Option<&Registered>) {
        let Some(served) = &self.served else { return };
        let trusted = registered.is_some_and(|registered| {
            !registered.webhooks.is_empty()
                && registered
                    .webhooks
                    .iter()
                    .all(|webhook| served.trusted_by(&String::from_utf8_lossy(&webhook.ca_bundle)))
        });
        if !trusted {
            self.reports.distrusted();
        }
    }

    /// Records since when the registration has carried this bundle without a gap that was seen.
    fn record_in_place(&mut self, bundle: &str, state: Option<BundleState>) {
        if !matches!(state, Some(BundleState::InPlace | BundleState::Published)) {
            self.in_place = None;
        } else if self.in_place.as_ref().is_none_or(|it| it.bundle != bundle) {
            self.in_place = Some(InPlace {
                bundle: bundle.to_owned(),
                since: Instant::now(),
            });
        }
    }

    /// Reads the Secret, and renews it until it is valid.
    async fn agree(&self, registered: Option<&Registered>) -> Result<Agreed, ManagerError> {
        let Config {
            names, lifetimes, ..
        } = &self.config;
        for _try in 0..SWAP_TRIES {
            let Stored { version, material } = match self.store.read().await? {
                Some(stored) => stored,
                None => self.store.create().await?,
            };
            let now = (self.clock)();
            let decision = rotation::decide(&material, names, now);
            if let Decision::Keep { leaf_ends, ca_ends } = decision {
                return Ok(Agreed {
                    material,
                    leaf_ends,
                    ca_ends,
                });
            }
            let held = self.with_trusted_authorities(material, &decision, registered);
            if let Some(fresh) = issue::renew(&held, &decision, names, *lifetimes, now)? {
                let swap = self.store.replace(&version, &fresh).await?;
                self.reports.issued(&decision, swap);
            }
        }
        Err(ManagerError::Contended("Secret"))
    }

    /// For a new CA, adds the CA of the certificate that is served to what the API server trusts, and
    /// what it trusts now: other replicas serve it, this one may have just started, and a Secret that
    /// was deleted does not name it any more.
    fn with_trusted_authorities(
        &self,
        mut held: Material,
        decision: &Decision,
        registered: Option<&Registered>,
    ) -> Material {
        if !matches!(decision, Decision::RollCa(_)) {
            return held;
        }
        // only the one that signed: few are kept, and others may serve what the registration names first
        let served = self.served.iter();
        let served = served.filter_map(|it| material::authorities(&it.material.ca_bundle).next());
        let mut bundles: Vec<String> = served.map(str::to_owned).collect();
        let webhooks = registered.iter().flat_map(|it| &it.webhooks);
        bundles.extend(webhooks.map(|it| String::from_utf8_lossy(&it.ca_bundle).into_owned()));
        bundles.push(held.ca_bundle);
        // another program's bundle may end without a line end
        held.ca_bundle = bundles.join("\n");
        held
    }

    /// Sets the caBundle where it differs. None if another program wrote to the registration since
    /// it was read.
    async fn publish(
        &self,
        registered: &Registered,
        bundle: &str,
    ) -> Result<Option<BundleState>, ManagerError> {
        if registered.webhooks.is_empty() {
            return Ok(Some(BundleState::Unregistered));
        }
        if registered.carries(bundle) {
            return Ok(Some(BundleState::InPlace));
        }
        let swap = self.registration.write(registered, bundle).await?;
        self.reports.published(swap);
        Ok((swap == Swap::Done).then_some(BundleState::Published))
    }

    /// A certificate of a new CA is served only once its bundle has been in place for a while:
    /// until then an API server may trust the old one and nothing else. A bundle without the old one, as
    /// from a Secret that was restored from a backup, leaves nothing to wait for.
    fn may_serve(&self, material: &Material, bundle: Option<BundleState>) -> bool {
        let Some(served) = &self.served else {
            return true;
        };
        let old = &served.material;
        if (&old.leaf, &old.leaf_key) == (&material.leaf, &material.leaf_key) {
            return false;
        }
        let same_authority = material::signing_authority(&old.ca_bundle)
            == material::signing_authority(&material.ca_bundle);
        let left = served.ends - (self.clock)();
        let settled = bundle == Some(BundleState::InPlace) && self.has_settled(left);
        let set = matches!(bundle, Some(BundleState::InPlace | BundleState::Published));
        let distrusted = set && !served.trusted_by(&material.ca_bundle);
        same_authority || !left.is_positive() || settled || distrusted
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
        self.served = Some(Served {
            material,
            ends: leaf_ends,
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
