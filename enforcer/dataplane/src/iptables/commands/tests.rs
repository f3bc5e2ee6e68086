use super::*;

#[test]
fn finds_the_line_that_an_error_names() {
    for (stderr, line) in [
        (
            "iptables-restore v1.8.9 (legacy): Couldn't load target `A'\n\nError occurred at line: 2",
            Some(2),
        ),
        ("iptables-restore: line 23 failed", Some(23)),
        (
            "iptables-nft-restore v1.8.9 (nf_tables): \nline 5: CHAIN_ADD failed (No such file)",
            Some(5),
        ),
        ("no number here", None),
        ("line: many", None),
        ("line 99999999999999999999", None),
    ] {
        assert_eq!(line_number(stderr), line, "{stderr}");
    }
}

#[test]
fn says_what_to_do() {
    let denied = "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)";
    assert!(hint(denied).unwrap().contains("NET_RAW"));
    let locked = "Another app is currently holding the xtables lock; still 4s";
    assert!(hint(locked).unwrap().contains("/run/xtables.lock"));
    assert_eq!(hint("anything else"), None);
}
