//! The directory itself: missing, created late, removed, replaced.

use std::fs;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use portmapping_enforcer::cni::SANDBOX_QUEUE;
use portmapping_enforcer_core::SandboxUpdate;

use crate::lab::{Lab, good};

#[tokio::test]
async fn a_directory_created_later_is_found() {
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
async fn a_missing_parent_directory_is_waited_for() {
    let mut lab = Lab::with(|results| fs::remove_dir(results.parent().unwrap()).unwrap());
    lab.shows("cni_results_watched 0").await;
    fs::create_dir_all(lab.results()).unwrap();
    assert!(lab.listed().await.is_empty());
    lab.end().await;
}

#[tokio::test]
async fn a_directory_removed_and_created_again_is_followed() {
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

/// It depends on timing whether the check of the directory or the queued removals come first: several
/// directories are tried.
#[tokio::test]
async fn removed_sandboxes_are_reported_when_the_directory_is_removed() {
    let one = || async {
        let mut lab = Lab::new();
        lab.listed().await;
        // more than the queue holds: from here on no file is read
        let files = SANDBOX_QUEUE + 1;
        for n in 0..files {
            lab.write(&format!("f{n}"), good(&format!("s{n}")));
        }
        while lab.updates.len() < SANDBOX_QUEUE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::remove_dir_all(lab.results()).unwrap();
        // the file that has no place in the queue may not be read any more
        let (mut up, mut down) = (0, 0);
        while up < SANDBOX_QUEUE || down < up {
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
async fn a_file_in_place_of_the_directory_is_waited_out() {
    let mut lab = Lab::with(|results| fs::write(results, "no directory").unwrap());
    lab.shows("cni_results_watched 0").await;
    fs::remove_file(lab.results()).unwrap();
    fs::create_dir(lab.results()).unwrap();
    assert!(lab.listed().await.is_empty());
    lab.end().await;
}

#[tokio::test]
async fn the_second_directory_is_used_where_the_first_is_missing() {
    let mut lab = Lab::with(|_| {});
    lab.shows("cni_results_watched 0").await;
    fs::write(lab.other().join("f"), good("a")).unwrap();
    let mut seen = lab.listed().await;
    if seen.is_empty() {
        seen.push(lab.up().await);
    }
    assert_eq!(seen, ["a"]);
    lab.shows("cni_results_watched 1").await;
    lab.end().await;
}

#[tokio::test]
async fn an_empty_directory_is_left_for_one_that_the_runtime_writes_to() {
    let mut lab = Lab::new();
    assert!(lab.listed().await.is_empty());
    fs::write(lab.other().join("f"), good("a")).unwrap();
    assert_eq!(lab.listed().await, ["a"]);
    lab.end().await;
}

#[tokio::test]
async fn a_directory_with_results_is_never_left() {
    let mut lab = Lab::new();
    lab.listed().await;
    lab.write("f", good("a"));
    assert_eq!(lab.up().await, "a");
    fs::write(lab.other().join("g"), good("b")).unwrap();
    // with the clock of tokio: it goes to the next timer when no task can run, so checks are made
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(10)).await;
    tokio::time::resume();
    lab.write("h", good("c"));
    assert_eq!(lab.up().await, "c");
    lab.end().await;
}

#[tokio::test]
async fn results_that_an_earlier_runtime_left_are_not_followed() {
    let mut lab = Lab::with(|results| {
        fs::create_dir_all(results).unwrap();
        fs::write(results.join("old"), good("old")).unwrap();
        let an_hour_ago = SystemTime::now() - Duration::from_hours(1);
        let dir = fs::File::open(results).unwrap();
        dir.set_modified(an_hour_ago).unwrap();
        let other = results.with_file_name("cache").join("results");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("new"), good("new")).unwrap();
    });
    assert_eq!(lab.listed().await, ["new"]);
    lab.end().await;
}

#[tokio::test]
async fn it_ends_when_cancelled_without_a_directory() {
    Lab::with(|_| {}).end().await;
}
