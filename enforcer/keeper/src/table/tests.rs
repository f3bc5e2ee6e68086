//! The table against a kernel that is told what to refuse.

use std::collections::BTreeSet;
use std::io::Read;

use portmapping_shared::{HostPort, Protocol};

use super::*;

/// Port 666 is taken, SCTP has no sockets, everything else binds.
fn bind((protocol, port): Port) -> io::Result<HeldPort> {
    if port.get() == 666 {
        return Err(io::Error::from_raw_os_error(98));
    }
    if protocol == Protocol::Sctp {
        return Ok(HeldPort::noted());
    }
    let (any, _) = UnixStream::pair()?;
    Ok(HeldPort::for_tests(any.into()))
}

fn port(protocol: Protocol, number: u16) -> Port {
    (protocol, HostPort::new(number).unwrap())
}

fn tcp(numbers: impl IntoIterator<Item = u16>) -> Vec<Port> {
    numbers
        .into_iter()
        .map(|number| port(Protocol::Tcp, number))
        .collect()
}

#[test]
fn every_port_has_its_outcome() {
    let table = Table::new(10, bind);
    let wanted = [tcp([1, 666, 2, 1]), vec![port(Protocol::Sctp, 1)]].concat();
    let taken = Outcome::Refused(Errno(98));
    let expected = [
        Outcome::Held,
        taken,
        Outcome::Held,
        Outcome::Held,
        Outcome::HeldWithoutSocket,
    ];
    assert_eq!(table.hold(&wanted).unwrap(), expected);
    assert_eq!(table.hold(&wanted).unwrap(), expected);
    assert_eq!(table.release(&wanted).unwrap(), 3);
    assert_eq!(table.page(None).unwrap(), (vec![], false));
}

#[test]
fn room_counts_sockets_and_comes_back() {
    let table = Table::new(2, bind);
    let full = Outcome::Refused(Errno(24));
    assert_eq!(
        table.hold(&tcp([1, 2, 3])).unwrap(),
        [Outcome::Held, Outcome::Held, full]
    );
    assert_eq!(
        table.hold(&tcp([1])).unwrap(),
        [Outcome::Held],
        "held before"
    );
    assert_eq!(table.release(&tcp([1, 1])).unwrap(), 1);
    assert_eq!(table.hold(&tcp([3, 1])).unwrap(), [Outcome::Held, full]);
    assert_eq!(
        table.hold(&[port(Protocol::Sctp, 9)]).unwrap(),
        [Outcome::HeldWithoutSocket]
    );
}

#[test]
fn pages_follow_each_other() {
    let table = Table::new(10_000, bind);
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
fn frozen_table_changes_nothing_and_thaws_as_it_was() {
    let table = Table::new(10, bind);
    table.hold(&tcp([1, 2])).unwrap();
    let frozen = table.freeze().unwrap();
    assert_eq!(frozen.ports.len(), 2);
    let off = OffDuty(Duty::Frozen);
    assert_eq!(table.hold(&tcp([3])), Err(off));
    assert_eq!(table.release(&tcp([1])), Err(off));
    assert_eq!(table.page(None), Err(off));
    assert_eq!(table.freeze().err(), Some(off));
    assert!(!table.settle(Duration::from_millis(1)));
    drop(frozen);
    assert!(table.settle(Duration::ZERO));
    assert_eq!(table.page(None).unwrap(), (tcp([1, 2]), false));
}

#[test]
fn retired_table_is_empty_only_after_it_let_go() {
    let table = Table::new(2, bind);
    table.hold(&tcp([1, 2])).unwrap();
    let frozen = table.freeze().unwrap();
    frozen.retire();
    assert_eq!(table.hold(&tcp([1])), Err(OffDuty(Duty::Retired)));
    drop(frozen);
    assert_eq!(
        table.page(None).unwrap(),
        (tcp([1, 2]), false),
        "came back from the successor"
    );

    let frozen = table.freeze().unwrap();
    frozen.retire();
    frozen.let_go();
    assert_eq!(table.page(None), Err(OffDuty(Duty::Retired)));
    table.resume();
    assert_eq!(table.page(None).unwrap(), (vec![], false));
    assert_eq!(
        table.hold(&tcp([3, 4])).unwrap(),
        [Outcome::Held; 2],
        "all room is back"
    );
}

#[test]
fn adopted_ports_count_and_own_ones_stay() {
    let table = Table::new(3, bind);
    table.hold(&tcp([1])).unwrap();
    let ports = tcp([1, 2, 3])
        .into_iter()
        .map(|port| (port, bind(port).unwrap()));
    assert_eq!(table.adopt(ports), 3);
    assert_eq!(
        table.hold(&tcp([4])).unwrap(),
        [Outcome::Refused(Errno(24))]
    );
}

#[test]
fn newest_watcher_hears_each_change_and_a_deaf_one_is_dropped() {
    let table = Table::new(3, bind);
    let pair = || UnixStream::pair().unwrap();
    let ((mut old, theirs), (mut new, theirs_too)) = (pair(), pair());
    table.watch(1, theirs);
    table.watch(2, theirs_too);
    table.unwatch(1);
    drop(table.freeze().unwrap());
    let mut heard = Vec::new();
    for _ in 0..3 {
        let Some(Reply::Duty(duty)) = wire::read(&mut new).unwrap() else {
            panic!("no duty")
        };
        heard.push(duty);
    }
    assert_eq!(heard, [Duty::Active, Duty::Frozen, Duty::Active]);
    let mut rest = Vec::new();
    old.read_to_end(&mut rest).unwrap();
    assert_eq!(
        wire::decode::<Reply>(&rest[4..]).unwrap(),
        Reply::Duty(Duty::Active)
    );
    // nobody reads: the socket's buffer fills, and the keeper goes on
    for _ in 0..100_000 {
        drop(table.freeze().unwrap());
    }
    assert!(table.inner.lock().watcher.is_none());
}
