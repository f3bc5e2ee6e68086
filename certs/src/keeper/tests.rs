//! Keepers against one in-memory Secret and registration that enforce compare-and-swap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use portmapping_runtime::{CallError, Readiness};
use time::OffsetDateTime;
use tokio::task::{JoinSet, yield_now};
use tokio_util::sync::CancellationToken;

use super::{Config, Keeper, KeeperError, Outcome, Reports, SETTLE, backoff};
use crate::bundle::{Entry, Registration, RegistrationError, Seen};
use crate::issue::{Lifetimes, Material, Names};
use crate::metrics::{CA, Damage, LEAF, Metrics};
use crate::resolver::Resolver;
use crate::rotation::{Decision, decide, living_authorities, signing_authority};
use crate::secret::{Store, StoreError, Stored, Swap};

const LIFETIMES: Lifetimes = Lifetimes {
    ca: Duration::from_hours(87_600),
    leaf: Duration::from_hours(8_760),
};
const LIMIT: Duration = Duration::from_secs(10);

/// (version, content); None where there is no such object.
type Object<T> = Option<(u64, T)>;

/// What the cluster holds.
#[derive(Clone, Default)]
struct Cluster {
    secret: Arc<Mutex<Object<Material>>>,
    registered: Arc<Mutex<Object<Vec<u8>>>>,
    down: Arc<AtomicBool>,
    read_only: Arc<AtomicBool>,
}

impl Cluster {
    fn registered() -> Self {
        let cluster = Self::default();
        *cluster.registered.lock() = Some((1, Vec::new()));
        cluster
    }

    /// Every call lets the other replicas run in between.
    async fn call(&self) -> Result<(), CallError<kube::Error>> {
        yield_now().await;
        if self.down.load(Ordering::Relaxed) {
            return Err(CallError::TimedOut {
                what: "call",
                limit: Duration::ZERO,
            });
        }
        Ok(())
    }

    async fn write_call(&self) -> Result<(), CallError<kube::Error>> {
        self.call().await?;
        if self.read_only.load(Ordering::Relaxed) {
            return Err(CallError::TimedOut {
                what: "write",
                limit: Duration::ZERO,
            });
        }
        Ok(())
    }

    fn material(&self) -> Material {
        self.secret
            .lock()
            .clone()
            .map(|(_, material)| material)
            .unwrap_or_default()
    }

    fn bundle(&self) -> String {
        let bytes = self
            .registered
            .lock()
            .clone()
            .map(|(_, bundle)| bundle)
            .unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }
}

impl Store for Cluster {
    async fn read(&self) -> Result<Option<Stored>, StoreError> {
        let name = "test".to_owned();
        self.call()
            .await
            .map_err(|source| StoreError::Read { name, source })?;
        let held = self.secret.lock().clone();
        Ok(held.map(|(version, material)| Stored {
            version: version.to_string(),
            material,
        }))
    }

    async fn create(&self) -> Result<Stored, StoreError> {
        yield_now().await;
        self.secret
            .lock()
            .get_or_insert_with(|| (1, Material::default()));
        Ok(Store::read(self).await?.unwrap())
    }

    async fn replace(&self, seen: &str, material: &Material) -> Result<Swap, StoreError> {
        let name = "test".to_owned();
        self.call()
            .await
            .map_err(|source| StoreError::Write { name, source })?;
        let mut held = self.secret.lock();
        match held.as_mut() {
            Some((version, there)) if version.to_string() == seen => {
                *version += 1;
                *there = material.clone();
                Ok(Swap::Done)
            }
            _ => Ok(Swap::Conflict),
        }
    }
}

impl Registration for Cluster {
    async fn read(&self) -> Result<Option<Seen>, RegistrationError> {
        let name = "test".to_owned();
        self.call()
            .await
            .map_err(|source| RegistrationError::Read { name, source })?;
        let held = self.registered.lock().clone();
        Ok(held.map(|(version, ca_bundle)| Seen {
            version: version.to_string(),
            entries: vec![Entry {
                name: "ours".to_owned(),
                ca_bundle,
            }],
        }))
    }

    async fn write(&self, seen: &Seen, bundle: &str) -> Result<Swap, RegistrationError> {
        let name = "test".to_owned();
        self.write_call()
            .await
            .map_err(|source| RegistrationError::Write { name, source })?;
        let mut held = self.registered.lock();
        match held.as_mut() {
            Some((version, there)) if version.to_string() == seen.version => {
                *version += 1;
                *there = bundle.as_bytes().to_vec();
                Ok(Swap::Done)
            }
            _ => Ok(Swap::Conflict),
        }
    }
}

struct Replica {
    keeper: Keeper<Cluster, Cluster>,
    readiness: Readiness,
    metrics: Metrics,
}

fn replica(cluster: &Cluster) -> Replica {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config {
        names: Names::of_service("webhook", "portmapping-system"),
        lifetimes: LIFETIMES,
        period: Duration::from_millis(5),
    };
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let reports = Reports {
        certificate: readiness.handle("certificate"),
        registration: readiness.handle("registration"),
        metrics: metrics.clone(),
    };
    let resolver = Arc::new(Resolver::default());
    let keeper = Keeper::new(config, cluster.clone(), cluster.clone(), resolver, reports);
    Replica {
        keeper,
        readiness,
        metrics,
    }
}

impl Replica {
    fn serves(&self) -> Option<&str> {
        Some(self.keeper.served.as_ref()?.material.leaf.as_str())
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn the_first_pass_issues_publishes_and_serves() {
    let cluster = Cluster::registered();
    let mut replica = replica(&cluster);
    assert_eq!(replica.readiness.pending().len(), 2);
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::Published);
    assert_eq!(replica.serves(), Some(cluster.material().leaf.as_str()));
    assert_eq!(cluster.bundle(), cluster.material().ca_bundle);
    assert!(replica.readiness.is_ready());
    let before = cluster.material();
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::InPlace);
    assert_eq!(cluster.material(), before, "nothing to do is done");
    assert!(replica.metrics.expiry.get_or_create(&LEAF).get() > 0);
}

#[tokio::test]
async fn replicas_that_start_at_once_agree_on_one_certificate() {
    for _round in 0..20 {
        let cluster = Cluster::registered();
        let token = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut seen = Vec::new();
        for _replica in 0..4 {
            let Replica {
                keeper,
                readiness,
                metrics,
            } = replica(&cluster);
            tasks.spawn(keeper.run(token.clone()));
            seen.push((readiness, metrics));
        }
        eventually("all ready", || {
            seen.iter().all(|(readiness, _)| readiness.is_ready())
        })
        .await;
        let issued: u64 = seen
            .iter()
            .map(|(_, m)| m.issued.get_or_create(&CA).get())
            .sum();
        assert_eq!(issued, 1, "one authority");
        assert_eq!(cluster.bundle(), cluster.material().ca_bundle);
        token.cancel();
        tasks.join_all().await;
    }
}

#[tokio::test]
async fn replicas_serve_the_same_leaf() {
    let cluster = Cluster::registered();
    let (mut one, mut two) = (replica(&cluster), replica(&cluster));
    let (first, second) = tokio::join!(one.keeper.pass(), two.keeper.pass());
    // one of them may have to look twice
    if first.is_err() {
        one.keeper.pass().await.unwrap();
    }
    if second.is_err() {
        two.keeper.pass().await.unwrap();
    }
    assert_eq!(one.serves(), two.serves());
    assert_eq!(one.serves(), Some(cluster.material().leaf.as_str()));
}

#[tokio::test]
async fn heals_a_secret_that_was_deleted_or_damaged_and_a_bundle_that_was_emptied() {
    let cluster = Cluster::registered();
    let Replica {
        keeper,
        readiness,
        metrics,
    } = replica(&cluster);
    let repairs = |what| metrics.repairs.get_or_create(&Damage { what }).get();
    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(keeper.run(token.clone()));
    eventually("ready", || readiness.is_ready()).await;
    assert_eq!(repairs("secret"), 0, "the first certificate is no repair");

    let whole = || {
        let material = cluster.material();
        !material.leaf_key.is_empty() && cluster.bundle() == material.ca_bundle
    };
    let bundle = cluster.bundle();
    cluster.registered.lock().as_mut().unwrap().1.clear();
    eventually("bundle back", || cluster.bundle() == bundle).await;
    cluster.secret.lock().as_mut().unwrap().1.leaf_key.clear();
    eventually("key back", whole).await;
    assert_eq!(cluster.bundle(), bundle, "the authority was good");
    cluster.secret.lock().as_mut().unwrap().1.ca_bundle = "rubbish".to_owned();
    eventually("authority back", whole).await;
    *cluster.secret.lock() = None;
    eventually("secret back", whole).await;
    eventually("ready again", || readiness.is_ready()).await;
    assert_eq!((repairs("secret"), repairs("registration")), (3, 1));
    token.cancel();
    tasks.join_all().await;
}

#[tokio::test]
async fn an_api_server_that_is_down_changes_nothing_that_is_served() {
    let cluster = Cluster::registered();
    let mut replica = replica(&cluster);
    cluster.down.store(true, Ordering::Relaxed);
    assert!(matches!(
        replica.keeper.pass().await,
        Err(KeeperError::Store(_))
    ));
    let pending = replica.readiness.pending().join(" ");
    assert!(pending.contains("cannot read Secret test"), "{pending}");

    cluster.down.store(false, Ordering::Relaxed);
    replica.keeper.pass().await.unwrap();
    let served = replica.serves().map(str::to_owned);
    cluster.down.store(true, Ordering::Relaxed);
    replica.keeper.pass().await.unwrap_err();
    assert!(replica.readiness.is_ready(), "who was ready stays ready");
    assert_eq!(replica.serves().map(str::to_owned), served);
}

#[tokio::test]
async fn waits_for_a_registration_and_serves_meanwhile() {
    let cluster = Cluster::default();
    let mut replica = replica(&cluster);
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::Unregistered);
    assert!(replica.serves().is_some());
    assert_eq!(
        replica.readiness.pending(),
        ["registration: no webhook of ours is registered"]
    );
    *cluster.registered.lock() = Some((1, Vec::new()));
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::Published);
    assert!(replica.readiness.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_leaf_of_a_new_authority_is_served_only_once_its_bundle_is_in_place() {
    let cluster = Cluster::registered();
    let (mut replica, mut other) = (replica(&cluster), replica(&cluster));
    replica.keeper.pass().await.unwrap();
    other.keeper.pass().await.unwrap();
    let old = replica.serves().unwrap().to_owned();
    let old_authority = signing_authority(&cluster.bundle());

    cluster.secret.lock().as_mut().unwrap().1.ca_key.clear();
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::Published);
    assert_eq!(replica.serves(), Some(old.as_str()), "the old one, for now");
    let bundle = cluster.bundle();
    assert_ne!(signing_authority(&bundle), old_authority);
    let trusted = living_authorities(&bundle, OffsetDateTime::now_utc());
    assert!(
        trusted
            .iter()
            .any(|one| signing_authority(one) == old_authority),
        "still trusted"
    );

    // the other replica finds the bundle in place, just now
    assert_eq!(other.keeper.pass().await.unwrap(), Outcome::InPlace);
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::InPlace);
    for replica in [&replica, &other] {
        assert_eq!(
            replica.serves(),
            Some(old.as_str()),
            "API servers may lag behind"
        );
    }

    tokio::time::advance(SETTLE).await;
    for replica in [&mut replica, &mut other] {
        assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::InPlace);
        assert_eq!(replica.serves(), Some(cluster.material().leaf.as_str()));
        assert_ne!(replica.serves(), Some(old.as_str()));
        assert!(replica.readiness.is_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_secret_leaves_what_the_replicas_serve_trusted() {
    let cluster = Cluster::registered();
    let (mut one, mut two) = (replica(&cluster), replica(&cluster));
    one.keeper.pass().await.unwrap();
    two.keeper.pass().await.unwrap();
    let old_authority = signing_authority(&cluster.bundle());

    *cluster.secret.lock() = None;
    assert_eq!(one.keeper.pass().await.unwrap(), Outcome::Published);
    let bundle = cluster.bundle();
    assert_ne!(
        signing_authority(&bundle),
        old_authority,
        "deleting it is asking for new ones"
    );
    let trusted = living_authorities(&bundle, OffsetDateTime::now_utc());
    assert_eq!(trusted.len(), 2);
    assert_eq!(
        signing_authority(&trusted[1]),
        old_authority,
        "the other replica serves its leaf"
    );

    assert_eq!(two.keeper.pass().await.unwrap(), Outcome::InPlace);
    tokio::time::advance(SETTLE).await;
    assert_eq!(two.keeper.pass().await.unwrap(), Outcome::InPlace);
    assert_eq!(one.keeper.pass().await.unwrap(), Outcome::InPlace);
    assert_eq!(one.serves(), two.serves());
    assert_eq!(one.serves(), Some(cluster.material().leaf.as_str()));
}

#[tokio::test]
async fn the_leaf_is_renewed_when_the_clock_says_so() {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    let clock = || OffsetDateTime::from_unix_timestamp(SECONDS.load(Ordering::Relaxed)).unwrap();
    let cluster = Cluster::registered();
    let Replica {
        keeper, metrics, ..
    } = replica(&cluster);
    let mut keeper = keeper.with_clock(clock);
    keeper.pass().await.unwrap();
    let first = cluster.material();
    SECONDS.fetch_add(
        i64::try_from(LIFETIMES.leaf.as_secs()).unwrap(),
        Ordering::Relaxed,
    );
    assert_eq!(keeper.pass().await.unwrap(), Outcome::InPlace);
    let second = cluster.material();
    assert_eq!(second.ca_bundle, first.ca_bundle);
    assert_ne!(second.leaf, first.leaf);
    assert_eq!(
        keeper.served.unwrap().material.leaf,
        second.leaf,
        "same authority: at once"
    );
    assert_eq!(metrics.issued.get_or_create(&LEAF).get(), 2);
    assert_eq!(metrics.issued.get_or_create(&CA).get(), 1);
}

#[tokio::test]
async fn a_clock_that_is_set_back_and_forth_is_healed_and_counted() {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    let clock = || OffsetDateTime::from_unix_timestamp(SECONDS.load(Ordering::Relaxed)).unwrap();
    let cluster = Cluster::registered();
    let Replica {
        keeper,
        readiness,
        metrics,
    } = replica(&cluster);
    let mut keeper = keeper.with_clock(clock);
    keeper.pass().await.unwrap();
    for years in [-20, 40, -20] {
        SECONDS.fetch_add(years * 31_536_000, Ordering::Relaxed);
        while keeper.pass().await.unwrap() != Outcome::InPlace {}
        let material = cluster.material();
        let names = Names::of_service("webhook", "portmapping-system");
        assert!(
            matches!(decide(&material, &names, clock()), Decision::Keep { .. }),
            "{years} years later"
        );
        assert_eq!(cluster.bundle(), material.ca_bundle);
        assert!(readiness.is_ready());
    }
    let clock = Damage { what: "clock" };
    assert_eq!(metrics.repairs.get_or_create(&clock).get(), 3);
}

#[tokio::test]
async fn ready_no_more_where_the_bundle_is_gone_and_cannot_be_put_back() {
    let cluster = Cluster::registered();
    let mut replica = replica(&cluster);
    replica.keeper.pass().await.unwrap();
    cluster.registered.lock().as_mut().unwrap().1.clear();
    cluster.read_only.store(true, Ordering::Relaxed);
    assert!(matches!(
        replica.keeper.pass().await,
        Err(KeeperError::Registration(_))
    ));
    let pending = replica.readiness.pending().join(" ");
    assert!(pending.contains("registration: cannot write"), "{pending}");

    cluster.read_only.store(false, Ordering::Relaxed);
    assert_eq!(replica.keeper.pass().await.unwrap(), Outcome::Published);
    assert!(replica.readiness.is_ready());
    *cluster.registered.lock() = Some((9, b"somebody else's".to_vec()));
    cluster.read_only.store(true, Ordering::Relaxed);
    replica.keeper.pass().await.unwrap_err();
    assert!(!replica.readiness.is_ready());
}

#[test]
fn waits_grow_and_do_not_overflow() {
    assert_eq!(backoff(1), Duration::from_millis(250));
    assert_eq!(backoff(3), Duration::from_secs(1));
    assert_eq!(backoff(u32::MAX), Duration::from_millis(250) * 65_536);
}
