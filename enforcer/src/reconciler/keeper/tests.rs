use portmapping_shared::{HostPort, Protocol};

use super::*;

fn port(number: u16) -> PortKey {
    (Protocol::Tcp, HostPort::new(number).unwrap())
}

fn refused(errno: Errno) -> HoldOutcome {
    HoldOutcome::Refused(wire::Errno(errno.raw_os_error()))
}

#[test]
fn only_a_port_in_use_is_refused_and_every_other_failure_names_its_remedy() {
    let outcomes = [
        (port(20_000), HoldOutcome::Held),
        (port(20_001), refused(Errno::ADDRINUSE)),
        (port(20_002), refused(Errno::MFILE)),
        (port(20_003), refused(Errno::PERM)),
        (port(20_004), HoldOutcome::HeldWithoutSocket),
    ];
    let answers = sort_outcomes(outcomes.into_iter());
    let [KeeperAnswer::Held(settled), KeeperAnswer::NotHeld(failed)] = &answers[..] else {
        panic!("{} answers", answers.len());
    };

    let held: Vec<_> = settled.iter().map(|(key, it)| (*key, it.is_ok())).collect();
    let expected = [
        (port(20_000), true),
        (port(20_001), false),
        (port(20_004), true),
    ];
    assert_eq!(held, expected);
    let in_use = settled[1].1.as_ref().unwrap_err();
    assert!(in_use.contains("in use"), "{in_use}");

    let [files, denied] = &failed[..] else {
        panic!("{failed:?}");
    };
    assert_eq!((files.0, denied.0), (port(20_002), port(20_003)));
    assert!(files.1.contains("LimitNOFILE"), "{}", files.1);
    assert!(denied.1.contains("security module"), "{}", denied.1);
    // the keeper runs as root: the advice for directories would be wrong
    assert!(!denied.1.contains("directory"), "{}", denied.1);
}

#[test]
fn an_answer_without_a_failure_reports_none() {
    let answers = sort_outcomes([(port(20_000), HoldOutcome::Held)].into_iter());
    assert!(matches!(&answers[..], [KeeperAnswer::Held(settled)] if settled.len() == 1));
}
