use kube::core::Status;
use tokio::time::advance;

use super::*;

fn broken() -> watcher::Error {
    watcher::Error::NoResourceVersion
}

fn gone() -> watcher::Error {
    let status = Status::failure("too old resource version", "Expired").with_code(GONE);
    watcher::Error::WatchError(status.boxed())
}

/// A wait is as long as this, or up to twice as long.
fn about(milliseconds: u64) -> std::ops::RangeInclusive<Duration> {
    Duration::from_millis(milliseconds)..=Duration::from_millis(2 * milliseconds)
}

#[tokio::test(start_paused = true)]
async fn waits_grow_to_a_limit_and_begin_anew_when_the_watch_works() {
    let mut again = Again::default();
    for expected in [200, 400, 800, 1600, 2000, 2000] {
        let wait = again.after(&broken());
        assert!(about(expected).contains(&wait), "{expected}: {wait:?}");
    }
    again.works();
    assert!(about(200).contains(&again.after(&broken())));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_lasted_was_not_broken_though_it_brought_nothing() {
    let mut again = Again::default();
    for _ in 0..5 {
        again.after(&broken());
    }
    advance(SETTLED + Duration::from_millis(1)).await;
    assert!(about(200).contains(&again.after(&broken())));
}

#[tokio::test(start_paused = true)]
async fn a_history_that_is_gone_is_listed_anew_at_once_but_not_again_and_again() {
    let mut again = Again::default();
    for _ in 0..5 {
        again.after(&broken());
    }
    assert_eq!(again.after(&gone()), Duration::ZERO);
    assert!(about(2000).contains(&again.after(&gone())));
    advance(SETTLED + Duration::from_millis(1)).await;
    assert_eq!(again.after(&gone()), Duration::ZERO);
}
