//! New authorities and leaves: when they are served, and what a clock does to them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use super::{LIFETIMES, Replica, replica};
use crate::manager::{BundleState, SETTLE};
use crate::material::{Lifetimes, Material, Names, living_authorities, signing_authority};
use crate::metrics::{CA, LEAF};
use crate::rotation::{Decision, decide};

#[tokio::test(start_paused = true)]
async fn a_leaf_of_a_new_authority_is_served_only_once_its_bundle_is_in_place() {
    let cluster = Cluster::registered();
    let (mut replica, mut other) = (replica(&cluster), replica(&cluster));
    replica.manager.pass().await.unwrap();
    other.manager.pass().await.unwrap();
    let old = replica.serves().unwrap().to_owned();
    let old_authority = signing_authority(&cluster.bundle());

    cluster.secret.lock().as_mut().unwrap().1.ca_key.clear();
    assert_eq!(
        replica.manager.pass().await.unwrap(),
        BundleState::Published
    );
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
    assert_eq!(other.manager.pass().await.unwrap(), BundleState::InPlace);
    assert_eq!(replica.manager.pass().await.unwrap(), BundleState::InPlace);
    for replica in [&replica, &other] {
        assert_eq!(
            replica.serves(),
            Some(old.as_str()),
            "API servers may lag behind"
        );
    }

    tokio::time::advance(SETTLE).await;
    for replica in [&mut replica, &mut other] {
        assert_eq!(replica.manager.pass().await.unwrap(), BundleState::InPlace);
        assert_eq!(replica.serves(), Some(cluster.material().leaf.as_str()));
        assert_ne!(replica.serves(), Some(old.as_str()));
        assert!(replica.readiness.pending().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_secret_leaves_what_the_replicas_serve_trusted() {
    let cluster = Cluster::registered();
    let (mut one, mut two) = (replica(&cluster), replica(&cluster));
    one.manager.pass().await.unwrap();
    two.manager.pass().await.unwrap();
    let old_authority = signing_authority(&cluster.bundle());

    *cluster.secret.lock() = None;
    assert_eq!(one.manager.pass().await.unwrap(), BundleState::Published);
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

    assert_eq!(two.manager.pass().await.unwrap(), BundleState::InPlace);
    tokio::time::advance(SETTLE).await;
    assert_eq!(two.manager.pass().await.unwrap(), BundleState::InPlace);
    assert_eq!(one.manager.pass().await.unwrap(), BundleState::InPlace);
    assert_eq!(one.serves(), two.serves());
    assert_eq!(one.serves(), Some(cluster.material().leaf.as_str()));
}

/// As after a restore from a backup: the API server trusts only what is in the Secret.
#[tokio::test]
async fn a_secret_with_another_authority_is_served_as_soon_as_its_bundle_is_set() {
    let elsewhere = Cluster::registered();
    replica(&elsewhere).manager.pass().await.unwrap();
    let cluster = Cluster::registered();
    let (mut one, mut two) = (replica(&cluster), replica(&cluster));
    one.manager.pass().await.unwrap();
    two.manager.pass().await.unwrap();
    let restored = elsewhere.material();
    *cluster.secret.lock() = Some((9, restored.clone()));
    assert_eq!(one.manager.pass().await.unwrap(), BundleState::Published);
    assert_eq!(two.manager.pass().await.unwrap(), BundleState::InPlace);
    assert_eq!(cluster.bundle(), restored.ca_bundle);
    for replica in [&one, &two] {
        assert_eq!(replica.serves(), Some(restored.leaf.as_str()));
        assert!(replica.readiness.pending().is_empty());
    }
}

#[tokio::test]
async fn a_replica_that_starts_without_the_secret_leaves_what_the_others_serve_trusted() {
    for damaged in [None, Some((7, Material::default()))] {
        let cluster = Cluster::registered();
        let (mut one, mut two) = (replica(&cluster), replica(&cluster));
        one.manager.pass().await.unwrap();
        let old_authority = signing_authority(&cluster.bundle());
        *cluster.secret.lock() = damaged;
        assert_eq!(two.manager.pass().await.unwrap(), BundleState::Published);
        let trusted = living_authorities(&cluster.bundle(), OffsetDateTime::now_utc());
        assert_eq!(trusted.len(), 2);
        assert_eq!(signing_authority(&trusted[1]), old_authority);
    }
}

#[tokio::test]
async fn a_new_authority_keeps_what_this_replica_and_what_another_serves() {
    let cluster = Cluster::registered();
    let (mut first, mut one, mut two) = (replica(&cluster), replica(&cluster), replica(&cluster));
    let mut authorities = Vec::new();
    // each starts without the Secret, and serves an authority of its own at once
    for started in [&mut first, &mut one, &mut two] {
        *cluster.secret.lock() = None;
        started.manager.pass().await.unwrap();
        authorities.push(signing_authority(&cluster.bundle()));
    }
    *cluster.secret.lock() = None;
    one.manager.pass().await.unwrap();
    let trusted = living_authorities(&cluster.bundle(), OffsetDateTime::now_utc());
    let trusted: Vec<_> = trusted.iter().map(|it| signing_authority(it)).collect();
    assert!(trusted.contains(&authorities[1]), "its own");
    assert!(trusted.contains(&authorities[2]), "that of the other");
}

#[tokio::test(start_paused = true)]
async fn with_other_clients_a_replica_still_waits_before_it_serves_a_new_authority() {
    let cluster = Cluster::registered();
    let mut one = replica(&cluster);
    one.manager.pass().await.unwrap();
    let old_leaf = cluster.material().leaf;
    one.manager = one.manager.with_clients(cluster.clone(), cluster.clone());
    *cluster.secret.lock() = None;
    assert_eq!(one.manager.pass().await.unwrap(), BundleState::Published);
    assert_eq!(one.serves(), Some(old_leaf.as_str()));
    tokio::time::advance(SETTLE).await;
    one.manager.pass().await.unwrap();
    tokio::time::advance(SETTLE).await;
    one.manager.pass().await.unwrap();
    assert_eq!(one.serves(), Some(cluster.material().leaf.as_str()));
}

#[tokio::test]
async fn the_leaf_is_renewed_when_the_clock_says_so() {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    let clock = || OffsetDateTime::from_unix_timestamp(SECONDS.load(Ordering::Relaxed)).unwrap();
    let cluster = Cluster::registered();
    let Replica {
        manager, metrics, ..
    } = replica(&cluster);
    let mut manager = manager;
    manager.clock = clock;
    manager.pass().await.unwrap();
    let first = cluster.material();
    SECONDS.fetch_add(
        i64::try_from(LIFETIMES.leaf.as_secs()).unwrap(),
        Ordering::Relaxed,
    );
    assert_eq!(manager.pass().await.unwrap(), BundleState::InPlace);
    let second = cluster.material();
    assert_eq!(second.ca_bundle, first.ca_bundle);
    assert_ne!(second.leaf, first.leaf);
    assert_eq!(
        manager.served.unwrap().material.leaf,
        second.leaf,
        "same authority: at once"
    );
    assert_eq!(metrics.issued.get_or_create(&LEAF).get(), 2);
    assert_eq!(metrics.issued.get_or_create(&CA).get(), 1);
}

#[tokio::test]
async fn a_clock_that_is_set_back_and_forth_leads_to_valid_certificates() {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    let clock = || OffsetDateTime::from_unix_timestamp(SECONDS.load(Ordering::Relaxed)).unwrap();
    let cluster = Cluster::registered();
    let Replica {
        manager, readiness, ..
    } = replica(&cluster);
    let mut manager = manager;
    manager.clock = clock;
    manager.pass().await.unwrap();
    for years in [-20, 40, -20] {
        SECONDS.fetch_add(years * 31_536_000, Ordering::Relaxed);
        while manager.pass().await.unwrap() != BundleState::InPlace {}
        let material = cluster.material();
        let names = Names::of_service("webhook", "portmapping-system");
        assert!(
            matches!(decide(&material, &names, clock()), Decision::Keep { .. }),
            "{years} years later"
        );
        assert_eq!(cluster.bundle(), material.ca_bundle);
        assert!(readiness.pending().is_empty());
    }
}

/// As after flags for short-lived certificates were taken back.
#[tokio::test(start_paused = true)]
async fn a_leaf_that_another_replica_issued_for_seconds_is_renewed_before_it_ends() {
    static START: OnceLock<(Instant, OffsetDateTime)> = OnceLock::new();
    let clock = || {
        let (start, time) = START.get_or_init(|| (Instant::now(), OffsetDateTime::now_utc()));
        *time + start.elapsed()
    };
    let cluster = Cluster::registered();
    let (mut short, mut usual) = (replica(&cluster), replica(&cluster));
    short.manager.clock = clock;
    short.manager.config.lifetimes = Lifetimes {
        ca: Duration::from_secs(9),
        leaf: Duration::from_secs(6),
    };
    short.manager.pass().await.unwrap();
    usual.manager.clock = clock;
    usual.manager.config.period = Duration::from_secs(15);
    let token = CancellationToken::new();
    let running = tokio::spawn(usual.manager.run(token.clone()));
    let ends = || usual.metrics.expiry.get_or_create(&LEAF).get();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let first = ends();
    for _tenth in 0..100 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = clock().unix_timestamp();
        assert!(ends() > now, "it serves an expired one");
    }
    assert!(ends() > first + 3600, "the leaf has the usual lifetime");
    token.cancel();
    running.await.unwrap();
}
