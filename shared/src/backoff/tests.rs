use super::*;

const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(30),
};

#[test]
fn waits_double_up_to_the_longest() {
    let waits = [0, 1, 2, 3, 7, 8, 9, u32::MAX].map(|failures| BACKOFF.after(failures, 0.0));
    let expected = [0, 250, 500, 1_000, 16_000, 30_000, 30_000, 30_000];
    assert_eq!(waits, expected.map(Duration::from_millis));
}

#[test]
fn jitter_is_a_share_of_the_wait() {
    assert_eq!(BACKOFF.after(3, 0.5), Duration::from_millis(1_500));
    assert_eq!(BACKOFF.after(3, -0.5), Duration::from_millis(500));
    assert_eq!(BACKOFF.after(9, 0.2), Duration::from_secs(36));
    for absurd in [f64::NAN, f64::INFINITY, -3.0] {
        assert_eq!(BACKOFF.after(3, absurd), Duration::from_secs(1), "{absurd}");
    }
    let endless = Backoff {
        longest: Duration::MAX,
        ..BACKOFF
    };
    assert!(endless.after(u32::MAX, 1.0) >= Duration::from_hours(24));
}
