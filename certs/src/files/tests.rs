//! A folder as the kubelet mounts a Secret: files are links into `..data`, which is a link that is
//! swapped.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicI64, Ordering};

use portmapping_runtime::Readiness;
use portmapping_runtime::metrics::Labels;
use rustls::sign::CertifiedKey;
use tempfile::TempDir;

use super::*;
use crate::issue::renew;
use crate::material::{Lifetimes, Material};
use crate::rotation::{Decision, Flaw};

const FILES_FAILED: Labels<1> = [("operation", "files")];

fn made(leaf: Duration, at: OffsetDateTime) -> Material {
    let lifetimes = Lifetimes { ca: leaf * 2, leaf };
    let names = Names::of_service("webhook", "portmapping-system");
    let roll = Decision::RollCa(Flaw::Missing);
    let made = renew(&Material::default(), &roll, &names, lifetimes, at);
    made.unwrap().unwrap()
}

fn year() -> Material {
    made(Duration::from_hours(8_760), OffsetDateTime::now_utc())
}

/// Writes a version and swaps the link, in the kubelet's order.
fn swap(folder: &Path, version: &str, files: &[(&str, &str)]) {
    fs::create_dir(folder.join(version)).unwrap();
    for (name, text) in files {
        fs::write(folder.join(version).join(name), text).unwrap();
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(VERSION_LINK).join(name), link).unwrap();
        }
    }
    let old = fs::read_link(folder.join(VERSION_LINK)).ok();
    symlink(version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join(VERSION_LINK)).unwrap();
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old)).unwrap();
    }
}

fn files_of(material: &Material) -> [(&'static str, &str); 3] {
    [
        (CERTIFICATE, material.leaf.as_str()),
        (KEY, material.leaf_key.as_str()),
        (AUTHORITY, material.ca_bundle.as_str()),
    ]
}

struct Fixture {
    folder: TempDir,
    files: Files,
    resolver: Arc<Resolver>,
    readiness: Readiness,
    metrics: Metrics,
}

fn fixture() -> Fixture {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let resolver = Arc::new(Resolver::default());
    let files = Files::new(
        folder.path().to_owned(),
        Names::of_service("webhook", "portmapping-system"),
        Arc::clone(&resolver),
        readiness.handle("certificate"),
        metrics.clone(),
    );
    Fixture {
        folder,
        files,
        resolver,
        readiness,
        metrics,
    }
}

impl Fixture {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn served(&self) -> Option<Arc<CertifiedKey>> {
        self.resolver.current()
    }

    fn errors(&self) -> u64 {
        self.metrics.errors.get_or_create(&FILES_FAILED).get()
    }
}

#[tokio::test]
async fn a_swapped_link_brings_the_next_certificate() {
    let mut it = fixture();
    let (one, two) = (year(), year());
    swap(it.path(), "..1", &files_of(&one));
    assert!(!it.readiness.pending().is_empty());
    assert_eq!(it.files.load().await.unwrap(), Loaded::New);
    assert!(it.readiness.pending().is_empty());
    let first = it.served().unwrap();
    assert_eq!(it.files.load().await.unwrap(), Loaded::Unchanged);

    swap(it.path(), "..2", &files_of(&two));
    assert_eq!(it.files.load().await.unwrap(), Loaded::New);
    assert_ne!(it.served().unwrap().cert, first.cert);
    assert_eq!(it.metrics.loads.get(), 2);
    assert!(it.metrics.expiry.get_or_create(&LEAF).get() > 0);
    assert!(it.metrics.expiry.get_or_create(&CA).get() > 0);
    assert_eq!(it.errors(), 0);
}

#[tokio::test]
async fn files_without_the_kubelets_links_work_too() {
    let mut it = fixture();
    for (name, text) in files_of(&year()) {
        fs::write(it.path().join(name), text).unwrap();
    }
    assert_eq!(it.files.load().await.unwrap(), Loaded::New);
}

#[tokio::test]
async fn files_that_do_not_belong_together_leave_the_old_pair_in_use() {
    let mut it = fixture();
    let (one, two) = (year(), year());
    assert!(matches!(
        it.files.load().await,
        Err(FilesError::Read { .. })
    ));
    let pending = it.readiness.pending().join(" ");
    assert!(pending.contains("tls.crt"), "{pending}");
    swap(it.path(), "..0", &files_of(&one));
    it.files.load().await.unwrap();
    let served = it.served().unwrap();

    let long = "x".repeat(300_000);
    let broken: [&[(&str, &str)]; 6] = [
        &[(CERTIFICATE, &two.leaf), (KEY, &one.leaf_key)],
        &[(CERTIFICATE, &one.leaf), (KEY, &two.leaf_key)],
        &[(CERTIFICATE, "rubbish"), (KEY, &two.leaf_key)],
        &[(CERTIFICATE, &two.leaf), (KEY, "")],
        &[(CERTIFICATE, &two.leaf)],
        &[(CERTIFICATE, &long), (KEY, &two.leaf_key)],
    ];
    for (round, files) in broken.into_iter().enumerate() {
        swap(it.path(), &format!("..bad{round}"), files);
        it.files.load().await.unwrap_err();
        assert_eq!(it.served().unwrap().cert, served.cert, "{round}");
        assert!(it.readiness.pending().is_empty(), "who serves stays ready");
    }
    assert_eq!(it.errors(), 7);

    swap(it.path(), "..good", &files_of(&two));
    assert_eq!(it.files.load().await.unwrap(), Loaded::New);
}

#[tokio::test]
async fn a_folder_in_place_of_a_file_is_an_error() {
    let mut it = fixture();
    fs::create_dir(it.path().join(CERTIFICATE)).unwrap();
    assert!(it.files.load().await.is_err());
}

#[tokio::test]
async fn an_expired_certificate_is_served_only_if_there_is_no_valid_one() {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    let clock = || OffsetDateTime::from_unix_timestamp(SECONDS.load(Ordering::Relaxed)).unwrap();
    let mut it = fixture();
    it.files.clock = clock;
    let hour = Duration::from_hours(1);
    let old = made(hour, clock() - hour * 24);
    swap(it.path(), "..1", &files_of(&old));
    assert_eq!(it.files.load().await.unwrap(), Loaded::New, "no other");
    let good = made(hour, clock());
    swap(it.path(), "..2", &files_of(&good));
    assert_eq!(it.files.load().await.unwrap(), Loaded::New);
    swap(it.path(), "..3", &files_of(&old));
    assert!(matches!(
        it.files.load().await,
        Err(FilesError::Expired { .. })
    ));
    SECONDS.fetch_add(7200, Ordering::Relaxed);
    let ended = it.served().unwrap();
    swap(it.path(), "..4", &files_of(&good));
    assert_eq!(
        it.files.load().await.unwrap(),
        Loaded::Unchanged,
        "expired, and kept because it is the same"
    );
    assert_eq!(it.served().unwrap().cert, ended.cert);
}

#[tokio::test(start_paused = true)]
async fn reads_the_folder_until_the_token_is_cancelled() {
    let it = fixture();
    let token = CancellationToken::new();
    let task = tokio::spawn(it.files.run(token.clone()));
    tokio::time::sleep(PERIOD * 3).await;
    swap(it.folder.path(), "..1", &files_of(&year()));
    let waiting = async {
        while !it.readiness.pending().is_empty() {
            tokio::time::sleep(PERIOD).await;
        }
    };
    tokio::time::timeout(PERIOD * 1000, waiting).await.unwrap();
    token.cancel();
    task.await.unwrap();
}
