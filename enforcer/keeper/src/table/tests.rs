//! The table with a bind function that refuses chosen ports.

use std::collections::BTreeSet;
use std::io::Read;

use portmapping_shared::{HostPort, Protocol};

use super::*;

/// Port 666 is in use, SCTP has no sockets, every other port binds.
fn bind((protocol, port): PortKey) -> io::Result<HeldPort> {
    if port.get() == 666 {
        return Err(io::Error::from_raw_os_error(98));
    }
    if protocol == Protocol::Sctp {
        return Ok(HeldPort::without_socket());
    }
    let (any, _) = UnixStream::pair()?;
    Ok(HeldPort::for_tests(any.into()))
}

fn port(protocol: Protocol, number: u16) -> PortKey {
    (protocol, HostPort::new(number).unwrap())
}

fn tcp(numbers: impl IntoIterator<Item = u16>) -> Vec<PortKey> {
    numbers
        .into_iter()
        .map(|number| port(Protocol::Tcp, number))
        .collect()
}

#[test]
fn hold_returns_one_outcome_per_port() {
    let table = PortTable::new(10, bind);
    let wanted = [tcp([1, 666, 2, 1]), vec![port(Protocol::Sctp, 1)]].concat();
    let taken = HoldOutcome::Refused(Errno(98));
    let expected = [
        HoldOutcome::Held,
        taken,
        HoldOutcome::Held,
        HoldOutcome::Held,
        HoldOutcome::HeldWithoutSocket,
    ];
    assert_eq!(table.hold(&wanted).unwrap(), expected);
    assert_eq!(table.hold(&wanted).unwrap(), expected);
    assert_eq!(table.release(&wanted).unwrap(), 3);
    assert_eq!(table.page(None).unwrap(), (vec![], false));
}

#[test]
fn limit_counts_sockets_and_released_sockets_free_room() {
    let table = PortTable::new(2, bind);
    let full = HoldOutcome::Refused(Errno(24));
    assert_eq!(
        table.hold(&tcp([1, 2, 3])).unwrap(),
        [HoldOutcome::Held, HoldOutcome::Held, full]
    );
    assert_eq!(
        table.hold(&tcp([1])).unwrap(),
        [HoldOutcome::Held],
        "held before"
    );
    assert_eq!(table.release(&tcp([1, 1])).unwrap(), 1);
    assert_eq!(table.hold(&tcp([3, 1])).unwrap(), [HoldOutcome::Held, full]);
    assert_eq!(
        table.hold(&[port(Protocol::Sctp, 9)]).unwrap(),
        [HoldOutcome::HeldWithoutSocket]
    );
}

#[test]
fn pages_list_every_port_once() {
    let table = PortTable::new(10_000, bind);
    let all = [tcp(1000..3000), vec![port(Protocol::Udp, 7)]].concat();
    table.hold(&all).unwrap();
    let (mut listed, mut after, mut pages) = (BTreeSet::new(), None, 0);
    loop {
        let (page, more) = table.page(after).unwrap();
        after = page.last().copied();
        pages += 1;
        assert!(page.into_iter().all(|port| listed.insert(port)), "twice");
        if !more {
            break;
        }
    }
    assert_eq!((listed, pages), (all.into_iter().collect(), 2));
    assert_eq!(table.page(after).unwrap(), (vec![], false));
}

#[test]
fn frozen_table_refuses_requests_and_keeps_its_ports() {
    let table = PortTable::new(10, bind);
    table.hold(&tcp([1, 2])).unwrap();
    let frozen = table.freeze().unwrap();
    assert_eq!(frozen.ports.len(), 2);
    let off = NotActive(KeeperRole::Frozen);
    assert_eq!(table.hold(&tcp([3])), Err(off));
    assert_eq!(table.release(&tcp([1])), Err(off));
    assert_eq!(table.page(None), Err(off));
    assert_eq!(table.freeze().err(), Some(off));
    assert!(!table.await_handover_end(Duration::from_millis(1)));
    drop(frozen);
    assert!(table.await_handover_end(Duration::ZERO));
    assert_eq!(table.page(None).unwrap(), (tcp([1, 2]), false));
}

#[test]
fn retired_table_is_empty_only_after_its_sockets_are_closed() {
    let table = PortTable::new(2, bind);
    table.hold(&tcp([1, 2])).unwrap();
    let frozen = table.freeze().unwrap();
    frozen.retire();
    assert_eq!(table.hold(&tcp([1])), Err(NotActive(KeeperRole::Retired)));
    table.close_copies(Duration::from_mins(1));
    table.resume();
    table.close_copies(Duration::ZERO);
    assert_eq!(
        table.page(None).unwrap(),
        (tcp([1, 2]), false),
        "the successor ended right after the handover"
    );

    table.freeze().unwrap().retire();
    table.close_copies(Duration::ZERO);
    assert_eq!(table.page(None), Err(NotActive(KeeperRole::Retired)));
    table.resume();
    assert_eq!(table.page(None).unwrap(), (vec![], false));
    assert_eq!(
        table.hold(&tcp([3, 4])).unwrap(),
        [HoldOutcome::Held; 2],
        "all sockets were closed"
    );
}

#[test]
fn only_an_active_table_stands_by() {
    let table = PortTable::new(2, bind);
    let frozen = table.freeze().unwrap();
    assert!(!table.stand_by(), "during a handover");
    drop(frozen);
    assert!(table.stand_by());
    assert!(!table.stand_by());
    assert_eq!(table.page(None), Err(NotActive(KeeperRole::Retired)));
}

#[test]
fn adopted_ports_count_against_the_limit_and_own_ports_stay() {
    let table = PortTable::new(3, bind);
    table.hold(&tcp([1])).unwrap();
    let ports = tcp([1, 2, 3])
        .into_iter()
        .map(|port| (port, bind(port).unwrap()));
    table.adopt(ports);
    assert_eq!(table.page(None).unwrap(), (tcp([1, 2, 3]), false));
    assert_eq!(
        table.hold(&tcp([4])).unwrap(),
        [HoldOutcome::Refused(Errno(24))]
    );
}

#[test]
fn newest_watcher_gets_each_change_and_one_that_does_not_read_is_dropped() {
    let table = PortTable::new(3, bind);
    let pair = || UnixStream::pair().unwrap();
    let ((mut old, theirs), (mut new, theirs_too)) = (pair(), pair());
    table.watch(1, theirs);
    table.watch(2, theirs_too);
    table.unwatch(1);
    drop(table.freeze().unwrap());
    let mut received = Vec::new();
    for _ in 0..3 {
        let Some(Reply::Role(role)) = wire::read(&mut new).unwrap() else {
            panic!("no role")
        };
        received.push(role);
    }
    assert_eq!(
        received,
        [KeeperRole::Active, KeeperRole::Frozen, KeeperRole::Active]
    );
    let mut rest = Vec::new();
    old.read_to_end(&mut rest).unwrap();
    assert_eq!(
        wire::decode::<Reply>(&rest[4..]).unwrap(),
        Reply::Role(KeeperRole::Active)
    );
    // no one reads: the socket's buffer fills, and the table must not block
    for _ in 0..100_000 {
        drop(table.freeze().unwrap());
    }
    assert!(table.inner.lock().watcher.is_none());
}
