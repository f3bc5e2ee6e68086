use std::time::Duration;

use super::duration;

#[test]
fn reads_one_number_and_one_unit() {
    for (text, seconds) in [
        ("0s", 0),
        ("30s", 30),
        ("5m", 300),
        ("12h", 43_200),
        ("365d", 31_536_000),
    ] {
        assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
}

#[test]
fn refuses_what_is_not_a_duration() {
    for text in [
        "",
        "s",
        "30",
        "-1s",
        "1.5h",
        "1h30m",
        "ms",
        "99999999999999999999d",
        "1w",
    ] {
        assert!(duration(text).is_err(), "{text}");
    }
}
