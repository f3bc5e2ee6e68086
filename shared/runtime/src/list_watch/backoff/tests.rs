use super::*;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn waits_grow_to_a_limit_and_start_again_when_the_watch_works() {
    let (mut backoff, now) = (WatchBackoff::default(), Instant::now());
    for expected in [200, 400, 800, 1600, 2000, 2000] {
        assert_eq!(backoff.after(None, now, 0.0), ms(expected));
    }
    assert_eq!(backoff.after(None, now, 1.0), ms(4000), "with jitter");
    backoff.reset();
    assert_eq!(backoff.after(None, now, 0.0), ms(200));
}

#[test]
fn a_watch_that_lasted_had_not_failed_even_without_events() {
    let (mut backoff, now) = (WatchBackoff::default(), Instant::now());
    for _ in 0..5 {
        backoff.after(None, now, 0.0);
    }
    let later = now + SETTLED + ms(1);
    assert_eq!(backoff.after(None, later, 0.0), ms(200));
}

#[test]
fn a_resource_version_that_is_gone_is_listed_at_once_but_not_repeatedly() {
    let (mut backoff, now) = (WatchBackoff::default(), Instant::now());
    for _ in 0..5 {
        backoff.after(None, now, 0.0);
    }
    assert_eq!(backoff.after(Some(GONE), now, 0.0), Duration::ZERO);
    assert_eq!(backoff.after(Some(GONE), now, 0.0), ms(2000));
    let later = now + SETTLED + ms(1);
    assert_eq!(backoff.after(Some(GONE), later, 0.0), Duration::ZERO);
}
