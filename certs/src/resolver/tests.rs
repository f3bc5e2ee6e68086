use std::sync::Once;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Resolver, ResolverError};
use crate::issue::renew;
use crate::material::{Lifetimes, Material, Names};
use crate::rotation::{Decision, Flaw};

fn material() -> Material {
    let names = Names::of_service("webhook", "portmapping-system");
    let lifetimes = Lifetimes {
        ca: Duration::from_hours(2),
        leaf: Duration::from_hours(1),
    };
    let (roll, now) = (Decision::RollCa(Flaw::Missing), OffsetDateTime::now_utc());
    renew(&Material::default(), &roll, &names, lifetimes, now)
        .unwrap()
        .unwrap()
}

#[test]
fn serves_only_a_pair_that_belongs_together_and_keeps_the_old_one_on_an_error() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let resolver = Resolver::default();
    assert!(resolver.current.load().is_none());

    let (one, two) = (material(), material());
    resolver.install(&one.leaf, &one.leaf_key).unwrap();
    let served = resolver.current.load_full().unwrap();

    let wrong = resolver.install(&two.leaf, &one.leaf_key);
    assert!(matches!(wrong, Err(ResolverError::Pair(_))));
    assert!(matches!(
        resolver.install(&two.leaf, ""),
        Err(ResolverError::Key(_))
    ));
    assert!(resolver.install("", &two.leaf_key).is_err());
    assert_eq!(resolver.current.load_full().unwrap().cert, served.cert);

    resolver.install(&two.leaf, &two.leaf_key).unwrap();
    assert_ne!(resolver.current.load_full().unwrap().cert, served.cert);
}
