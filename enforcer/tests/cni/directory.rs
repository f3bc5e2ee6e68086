//! The directory itself: missing, coming late, removed, replaced.

use std::fs;
use std::time::Duration;

use futures::future::join_all;
use portmapping_enforcer::cni::SANDBOX_QUEUE;
use portmapping_enforcer_core::SandboxUpdate;

use crate::lab::{Lab, good};

#[tokio::test]
async fn a_directory_that_comes_late_is_found() {
    let mut lab = Lab::with(|_| {});
    lab.shows("cni_results_watched 0").await;
    // as libcni does it for the first pod of a node
    fs::create_dir(lab.results()).unwrap();
    lab.write("pods-a-eth0", good("a"));
    let mut seen = lab.listed().await;
    if seen.is_empty() {
        seen.push(lab.up().await);
    }
    assert_eq!(seen, ["a"]);
    lab.shows("cni_results_watched 1").await;
    lab.end().await;
}

#[tokio::test]
async fn a_missing_parent_is_waited_for_as_well() {
    let mut lab = Lab::with(|results| fs::remove_dir(results.parent().unwrap()).unwrap());
    lab.shows("cni_results_watched 0").await;
    fs::create_dir_all(lab.results()).unwrap();
    assert!(lab.listed().await.is_empty());
    lab.end().await;
}

#[tokio::test]
async fn a_directory_removed_and_made_anew_is_followed_again() {
    let mut lab = Lab::new();
    lab.listed().await;
    lab.write("f", good("a"));
    assert_eq!(lab.up().await, "a");
    fs::remove_dir_all(lab.results()).unwrap();
    assert_eq!(lab.down().await, "a");
    lab.shows("cni_results_watched 0").await;
    fs::create_dir(lab.results()).unwrap();
    assert!(lab.listed().await.is_empty());
    lab.write("f", good("b"));
    assert_eq!(lab.up().await, "b");
    lab.end().await;
}

/// Whether a look at the directory or what was queued before comes first is chance: several try.
#[tokio::test]
async fn what_was_removed_is_told_even_if_the_directory_is_found_gone_first() {
    let one = || async {
        let mut lab = Lab::new();
        lab.listed().await;
        // more than may wait: from here on nothing is read
        let files = SANDBOX_QUEUE + 1;
        for n in 0..files {
            lab.write(&format!("f{n}"), good(&format!("s{n}")));
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        fs::remove_dir_all(lab.results()).unwrap();
        let (mut up, mut down) = (0, 0);
        while up < files || down < up {
            match lab.next().await {
                SandboxUpdate::Up(_) => up += 1,
                SandboxUpdate::Down(_) => down += 1,
                other @ SandboxUpdate::Listed(_) => panic!("{other:?}"),
            }
        }
        lab.end().await;
    };
    join_all((0..6).map(|_| one())).await;
}

#[tokio::test]
async fn a_directory_replaced_by_another_is_listed_again() {
    let mut lab = Lab::new();
    lab.listed().await;
    lab.write("f", good("a"));
    assert_eq!(lab.up().await, "a");
    let other = lab.parent().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("g"), good("b")).unwrap();
    fs::rename(lab.results(), lab.parent().join("old")).unwrap();
    fs::rename(&other, lab.results()).unwrap();
    assert_eq!(lab.listed().await, ["b"]);
    lab.end().await;
}

#[tokio::test]
async fn a_renamed_parent_is_noticed() {
    let mut lab = Lab::new();
    lab.listed().await;
    fs::rename(lab.parent(), lab.parent().with_extension("old")).unwrap();
    lab.shows("cni_results_watched 0").await;
    fs::create_dir_all(lab.results()).unwrap();
    lab.write("f", good("a"));
    let mut seen = lab.listed().await;
    if seen.is_empty() {
        seen.push(lab.up().await);
    }
    assert_eq!(seen, ["a"]);
    lab.end().await;
}

#[tokio::test]
async fn a_file_in_place_of_the_directory_is_not_the_end() {
    let mut lab = Lab::with(|results| fs::write(results, "no directory").unwrap());
    lab.shows("cni_results_watched 0").await;
    fs::remove_file(lab.results()).unwrap();
    fs::create_dir(lab.results()).unwrap();
    assert!(lab.listed().await.is_empty());
    lab.end().await;
}

#[tokio::test]
async fn it_ends_when_told_to_even_while_there_is_nothing() {
    Lab::with(|_| {}).end().await;
}
