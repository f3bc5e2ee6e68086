//! What an uninstallation leaves to a keeper that starts at the same time.

use std::os::unix::net::UnixListener;

use super::super::peers::Peers;
use super::super::table::PortTable;
use super::super::wire::KeeperRole;
use super::*;

/// A second enforcer's keeper that found no socket here would get `PortConflict` for every port.
#[test]
fn a_keeper_that_starts_meanwhile_waits_and_keeps_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let ended = wait_for_end(dir.path(), Duration::ZERO).unwrap();
    let table = PortTable::new(10, |_| unreachable!());
    let peers = Peers::new(table, RunDir::open(dir.path()).unwrap());
    let _listening = peers.start().unwrap();
    assert_eq!(
        peers.table.role(),
        KeeperRole::Retired,
        "its enforcer would write rules while they are removed"
    );
    let Err(EndError::Started(keeper)) = ended.clear() else {
        panic!("a keeper answers");
    };
    assert!(keeper.exists(), "the next keeper could not find it");
    assert_eq!(peers.take_over().unwrap(), KeeperRole::Active);
}

#[test]
fn what_dead_keepers_and_enforcers_left_is_removed() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("run");
    let ended = wait_for_end(&dir, Duration::ZERO).unwrap();
    let starting = dir.join(".keeper-2-1.sock.tmp");
    for path in [&dir.join("keeper-1-1.sock"), &starting] {
        drop(UnixListener::bind(path).unwrap());
    }
    fs::write(dir.join("rules.lock"), "name").unwrap();
    ended.clear().unwrap();
    let left = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    assert_eq!(left.collect::<Vec<_>>(), std::slice::from_ref(&starting));
    fs::remove_file(starting).unwrap();
    wait_for_end(&dir, Duration::ZERO).unwrap().clear().unwrap();
    assert!(!dir.exists());
}
