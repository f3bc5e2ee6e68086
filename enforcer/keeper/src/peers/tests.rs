//! A keeper next to one of an earlier version, which the test plays.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use portmapping_shared::{HostPort, Protocol};
use rustix::net::SocketType;
use tempfile::TempDir;

use super::super::socket;
use super::*;

/// What an earlier keeper writes, byte for byte.
const ACTIVE: &[u8] = br#""active""#;
const OFFER: &[u8] = br#"{"offer":{"ports":1,"sockets":1}}"#;

/// An earlier keeper: active, until the connection of its successor ends.
struct Earlier {
    listener: OwnedFd,
    held: std::net::UdpSocket,
    _file: Published,
}

impl Earlier {
    fn start(dir: &TempDir) -> Self {
        let path = dir.path().join("keeper-0-1.sock");
        let (listener, file) = socket::listen(&path, SocketType::SEQPACKET).unwrap();
        Self {
            listener,
            held: std::net::UdpSocket::bind("[::1]:0").unwrap(),
            _file: file,
        }
    }

    /// Accepts a connection until then.
    fn accept_until(&self, deadline: Instant) -> Option<OwnedFd> {
        let mut waits = [rustix::event::PollFd::new(
            &self.listener,
            rustix::event::PollFlags::IN,
        )];
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = rustix::event::poll(&mut waits, Some(&left.try_into().unwrap())).unwrap();
        (ready > 0).then(|| socket::accept(&self.listener).unwrap())
    }

    /// Answers the next question, if it is one after the status.
    fn answer_status(&self) -> Option<OwnedFd> {
        let peer = socket::accept(&self.listener).unwrap();
        let question = receive(&peer);
        if question.starts_with(r#"{"status":{"v":1"#) {
            send(&peer, ACTIVE);
            return None;
        }
        assert_eq!(question, r#"{"take":{"v":1}}"#);
        Some(peer)
    }

    /// Hands one port over, and returns the connection.
    fn hand_over(&self) -> OwnedFd {
        let peer = std::iter::repeat_with(|| self.answer_status());
        let peer = peer.flatten().next().unwrap();
        send(&peer, OFFER);
        let port = self.held.local_addr().unwrap().port();
        let batch = format!(r#"{{"batch":{{"held":[["UDP",{port}]],"noted":[]}}}}"#);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        let fds = [self.held.as_fd()];
        ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let (parts, flags) = (
            [std::io::IoSlice::new(batch.as_bytes())],
            rustix::net::SendFlags::empty(),
        );
        rustix::net::sendmsg(&peer, &parts, &mut ancillary, flags).unwrap();
        assert_eq!(receive(&peer), r#""got""#);
        send(&peer, br#""end""#);
        assert_eq!(receive(&peer), r#""confirm""#);
        send(&peer, br#""done""#);
        peer
    }
}

fn send(peer: &OwnedFd, bytes: &[u8]) {
    rustix::net::send(peer, bytes, rustix::net::SendFlags::empty()).unwrap();
}

/// Returns the next message; empty at the end of the connection.
fn receive(peer: &OwnedFd) -> String {
    let mut buffer = vec![0; 1000];
    let flags = rustix::net::RecvFlags::empty();
    let (length, _) = rustix::net::recv(peer, &mut buffer[..], flags).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// A keeper that is busy must not be taken for one that is gone: two active ones would take the node from
/// each other for ever.
#[test]
fn a_keeper_that_answers_and_does_not_hand_over_stays_the_active_one() {
    stays_active(br#""busy""#);
    stays_active(br#"{"error":"another version"}"#);
}

fn stays_active(answer: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let earlier = Earlier::start(&dir);
    let table = PortTable::new(10, |_| unreachable!());
    table.stand_by();
    let peers = Arc::new(Peers::new(table, RunDir::open(dir.path()).unwrap()));
    let refused = thread::scope(|scope| {
        let asking = scope.spawn(|| peers.take_over());
        while !asking.is_finished() {
            let poll = Instant::now() + Duration::from_millis(100);
            if let Some(peer) = earlier.accept_until(poll) {
                receive(&peer);
                send(&peer, answer);
            }
        }
        asking.join().unwrap()
    });
    let Err(KeeperError::NotHandedOver { busy, silent }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((busy, silent), (1, 0));
    assert_eq!(peers.table.role(), KeeperRole::Retired);
    // a keeper that is gone is no reason to wait
    drop(earlier);
    assert_eq!(peers.take_over().unwrap(), KeeperRole::Active);
}

#[test]
fn the_lock_of_the_run_directory_that_cannot_be_taken_is_named_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let table = PortTable::new(10, |_| unreachable!());
    table.stand_by();
    let peers = Peers::new(table, RunDir::open(dir.path()).unwrap());
    std::fs::create_dir(dir.path().join("lock")).unwrap();
    let error = peers.take_over().unwrap_err().to_string();
    assert!(error.contains("the lock of the run directory"), "{error}");
}

#[test]
fn an_earlier_keeper_hands_over_and_gets_the_node_back_when_the_enforcer_ends() {
    let dir = tempfile::tempdir().unwrap();
    let earlier = Earlier::start(&dir);
    let table = PortTable::new(10, |_| unreachable!());
    let peers = Arc::new(Peers::new(table, RunDir::open(dir.path()).unwrap()));
    let _listening = thread::scope(|scope| {
        scope.spawn(|| assert!(earlier.answer_status().is_none()));
        peers.start().unwrap()
    });
    assert_eq!(peers.table.role(), KeeperRole::Retired);

    let (watcher, enforcer) = UnixStream::pair().unwrap();
    peers.table.watch(1, watcher);
    let connection = thread::scope(|scope| {
        let old = scope.spawn(|| earlier.hand_over());
        assert_eq!(peers.take_over().unwrap(), KeeperRole::Active);
        old.join().unwrap()
    });
    let port = HostPort::new(earlier.held.local_addr().unwrap().port()).unwrap();
    let held = (vec![(Protocol::Udp, port)], false);
    assert_eq!(peers.table.page(None).unwrap(), held);

    let follow = {
        let peers = Arc::clone(&peers);
        move || peers.follow()
    };
    thread::spawn(follow); // ends with this process
    drop(enforcer);
    peers.table.unwatch(1);
    assert_eq!(receive(&connection), "", "the end of the connection");
    assert_eq!(peers.table.role(), KeeperRole::Retired);

    // it hands over once more and ends: then there is no one to give the node back to
    let (watcher, _enforcer) = UnixStream::pair().unwrap();
    peers.table.watch(2, watcher);
    let connection = thread::scope(|scope| {
        let old = scope.spawn(|| earlier.hand_over());
        assert_eq!(peers.take_over().unwrap(), KeeperRole::Active);
        old.join().unwrap()
    });
    drop((connection, earlier));
    while !peers.open.lock().predecessors.is_empty() {
        thread::sleep(POLL_PERIOD);
    }
    assert_eq!(peers.table.role(), KeeperRole::Active);
}
