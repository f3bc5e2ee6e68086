//! Managers against one in-memory Secret and registration that enforce compare-and-swap.

mod cluster;
mod renewal;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use portmapping_runtime::Readiness;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{BundleState, CertManager, Config, ManagerError, Reports};
use crate::material::{Lifetimes, Names};
use crate::metrics::{CA, LEAF, Metrics};
use crate::resolver::Resolver;

use cluster::Cluster;

const LIFETIMES: Lifetimes = Lifetimes {
    ca: Duration::from_hours(87_600),
    leaf: Duration::from_hours(8_760),
};
const LIMIT: Duration = Duration::from_secs(10);

struct Replica {
    manager: CertManager<Cluster, Cluster>,
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
    let manager = CertManager::new(config, cluster.clone(), cluster.clone(), resolver, reports);
    Replica {
        manager,
        readiness,
        metrics,
    }
}

impl Replica {
    fn serves(&self) -> Option<&str> {
        Some(self.manager.served.as_ref()?.material.leaf.as_str())
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
    assert_eq!(
        replica.manager.pass().await.unwrap(),
        BundleState::Published
    );
    assert_eq!(replica.serves(), Some(cluster.material().leaf.as_str()));
    assert_eq!(cluster.bundle(), cluster.material().ca_bundle);
    assert!(replica.readiness.pending().is_empty());
    let before = cluster.material();
    assert_eq!(replica.manager.pass().await.unwrap(), BundleState::InPlace);
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
                manager,
                readiness,
                metrics,
            } = replica(&cluster);
            tasks.spawn(manager.run(token.clone()));
            seen.push((readiness, metrics));
        }
        eventually("all ready", || {
            seen.iter()
                .all(|(readiness, _)| readiness.pending().is_empty())
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
    let (first, second) = tokio::join!(one.manager.pass(), two.manager.pass());
    // one of them may need a second pass
    if first.is_err() {
        one.manager.pass().await.unwrap();
    }
    if second.is_err() {
        two.manager.pass().await.unwrap();
    }
    assert_eq!(one.serves(), two.serves());
    assert_eq!(one.serves(), Some(cluster.material().leaf.as_str()));
}

#[tokio::test]
async fn repairs_a_secret_that_was_deleted_or_damaged_and_a_bundle_that_was_emptied() {
    let cluster = Cluster::registered();
    let Replica {
        manager,
        readiness,
        metrics,
    } = replica(&cluster);
    let repairs = |what| metrics.repairs.get_or_create(&[("what", what)]).get();
    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(manager.run(token.clone()));
    eventually("ready", || readiness.pending().is_empty()).await;
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
    eventually("ready again", || readiness.pending().is_empty()).await;
    assert_eq!((repairs("secret"), repairs("registration")), (3, 1));
    token.cancel();
    tasks.join_all().await;
}

#[tokio::test(start_paused = true)]
async fn a_replaced_registration_is_repaired_when_its_watch_tells_not_when_the_period_ends() {
    let cluster = Cluster::registered();
    let Replica { mut manager, .. } = replica(&cluster);
    manager.config.period = Duration::from_hours(1);
    let token = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(manager.run(token.clone()));
    for version in [10, 20] {
        // settled: without a change the next pass is a period away
        tokio::time::sleep(Duration::from_mins(1)).await;
        *cluster.registered.lock() = Some((version, Vec::new()));
        cluster.change.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!cluster.bundle().is_empty(), "no caBundle after a second");
        assert_eq!(cluster.bundle(), cluster.material().ca_bundle);
    }
    token.cancel();
    tasks.join_all().await;
}

#[tokio::test]
async fn an_api_server_that_is_down_does_not_change_what_is_served() {
    let cluster = Cluster::registered();
    let mut replica = replica(&cluster);
    cluster.down.store(true, Ordering::Relaxed);
    assert!(matches!(
        replica.manager.pass().await,
        Err(ManagerError::Store(_))
    ));
    let pending = replica.readiness.pending().join(" ");
    assert!(pending.contains("cannot read Secret test"), "{pending}");

    cluster.down.store(false, Ordering::Relaxed);
    replica.manager.pass().await.unwrap();
    let served = replica.serves().map(str::to_owned);
    cluster.down.store(true, Ordering::Relaxed);
    replica.manager.pass().await.unwrap_err();
    assert!(
        replica.readiness.pending().is_empty(),
        "what was ready stays ready"
    );
    assert_eq!(replica.serves().map(str::to_owned), served);
}

#[tokio::test]
async fn serves_a_certificate_before_there_is_a_registration() {
    let cluster = Cluster::default();
    let mut replica = replica(&cluster);
    assert_eq!(
        replica.manager.pass().await.unwrap(),
        BundleState::Unregistered
    );
    assert!(replica.serves().is_some());
    assert_eq!(
        replica.readiness.pending(),
        ["registration: no MutatingWebhookConfiguration names our service"]
    );
    *cluster.registered.lock() = Some((1, Vec::new()));
    assert_eq!(
        replica.manager.pass().await.unwrap(),
        BundleState::Published
    );
    assert!(replica.readiness.pending().is_empty());
}

#[tokio::test]
async fn not_ready_while_the_bundle_is_missing_and_cannot_be_set() {
    let cluster = Cluster::registered();
    let mut replica = replica(&cluster);
    replica.manager.pass().await.unwrap();
    cluster.registered.lock().as_mut().unwrap().1.clear();
    cluster.read_only.store(true, Ordering::Relaxed);
    assert!(matches!(
        replica.manager.pass().await,
        Err(ManagerError::Registration(_))
    ));
    let pending = replica.readiness.pending().join(" ");
    assert!(pending.contains("registration: cannot write"), "{pending}");

    cluster.read_only.store(false, Ordering::Relaxed);
    assert_eq!(
        replica.manager.pass().await.unwrap(),
        BundleState::Published
    );
    assert!(replica.readiness.pending().is_empty());
    *cluster.registered.lock() = Some((9, b"of another program".to_vec()));
    cluster.read_only.store(true, Ordering::Relaxed);
    replica.manager.pass().await.unwrap_err();
    assert!(!replica.readiness.pending().is_empty());
}
