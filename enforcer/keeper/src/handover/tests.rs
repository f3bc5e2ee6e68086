//! The protocol between keepers; the test plays one side.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use portmapping_shared::{HostPort, Protocol};
use tempfile::TempDir;

use super::super::bind::HeldPort;
use super::super::run_dir::RunDir;
use super::super::socket::Published;
use super::super::table::PortTable;
use super::super::wire::{KeeperRole, VERSION};
use super::*;

mod messages;

/// A keeper with 300 bound ports that the kernel chose, and one without socket.
struct Old {
    table: Arc<PortTable>,
    run_dir: Arc<RunDir>,
    dir: TempDir,
}

impl Old {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = Arc::new(RunDir::open(dir.path()).unwrap());
        let table = Arc::new(PortTable::new(1000, |_| unreachable!()));
        table.adopt(
            sockets()
                .into_iter()
                .map(|(port, fd)| (port, HeldPort::adopt(port, fd).unwrap())),
        );
        let without_socket = (Protocol::Sctp, HostPort::new(20000).unwrap());
        table.adopt([(without_socket, HeldPort::without_socket())]);
        Self {
            table,
            run_dir,
            dir,
        }
    }

    /// Answers on one end of a connection; the other end is the caller's.
    fn answer(&self) -> (Channel, JoinHandle<()>) {
        let (ours, theirs) = Channel::pair();
        let table = Arc::clone(&self.table);
        (ours, thread::spawn(move || answer(&table, &theirs)))
    }

    fn has_all_ports(&self) -> bool {
        self.table
            .page(None)
            .is_ok_and(|(ports, _)| ports.len() == 301)
    }
}

/// 300 sockets bound to ports that the kernel chooses.
fn sockets() -> Vec<(PortKey, OwnedFd)> {
    let bind = |protocol| {
        let kind = if protocol == Protocol::Tcp {
            socket2::Type::STREAM
        } else {
            socket2::Type::DGRAM
        };
        let socket = socket2::Socket::new(socket2::Domain::IPV6, kind, None).unwrap();
        let any = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
        socket.bind(&any.into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        (
            (protocol, HostPort::new(port).unwrap()),
            OwnedFd::from(socket),
        )
    };
    (0..300)
        .map(|n| {
            bind(if n % 2 == 0 {
                Protocol::Tcp
            } else {
                Protocol::Udp
            })
        })
        .collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn status(v: u32, details: bool) -> Message {
    Message::Status { v, details }
}

fn send(channel: &Channel, message: &Message) {
    channel.send(message, &[], soon()).unwrap();
}

fn receive(channel: &Channel) -> Received {
    channel.recv(Some(soon())).unwrap().expect("the end")
}

/// Receives all batches and does not confirm. Returns for each batch how many ports came with a
/// descriptor and how many without.
fn take_all(new: &Channel) -> Vec<(usize, usize)> {
    send(new, &Message::Take { v: VERSION });
    let offer = Message::Offer {
        ports: 301,
        sockets: 300,
        polls: true,
    };
    assert_eq!(receive(new).0, offer);
    let mut counts = Vec::new();
    loop {
        match receive(new) {
            (
                Message::Batch {
                    held,
                    without_socket,
                },
                fds,
            ) => {
                assert_eq!(held.len(), fds.len());
                counts.push((held.len(), without_socket.len()));
                for (port, fd) in held.into_iter().zip(fds) {
                    HeldPort::adopt(port, fd).unwrap();
                }
                send(new, &Message::Got);
            }
            (Message::End, _) => return counts,
            (message, _) => panic!("{message:?}"),
        }
    }
}

#[test]
fn old_keeper_hands_everything_over_and_retires_on_confirm() {
    let old = Old::new();
    let (new, thread) = old.answer();
    let counts = take_all(&new);
    assert_eq!(
        counts
            .iter()
            .map(|(held, without_socket)| held + without_socket)
            .sum::<usize>(),
        301
    );
    assert_eq!(counts.len(), 2);
    assert_eq!(
        old.table.role(),
        KeeperRole::Frozen,
        "not before the confirmation"
    );
    send(&new, &Message::Confirm);
    assert_eq!(receive(&new).0, Message::Done);
    thread.join().unwrap();
    assert_eq!(old.table.role(), KeeperRole::Retired);
    old.table.resume();
    assert!(old.has_all_ports(), "until it closes its copies");
}

#[test]
fn old_keeper_stays_active_wherever_the_new_one_dies() {
    let deaths: [fn(&Channel); 6] = [
        |_| {},
        |new| send(new, &Message::Take { v: VERSION }),
        |new| {
            send(new, &Message::Take { v: VERSION });
            receive(new);
            receive(new);
        },
        |new| {
            send(new, &Message::Take { v: VERSION });
            receive(new);
            receive(new);
            send(new, &Message::Got);
        },
        |new| drop(take_all(new)),
        |new| {
            take_all(new);
            send(new, &Message::Confirm);
        },
    ];
    for (steps, die) in deaths.iter().enumerate() {
        let old = Old::new();
        let (new, thread) = old.answer();
        die(&new);
        drop(new);
        thread.join().unwrap();
        if old.table.role() == KeeperRole::Retired {
            old.table.resume(); // as it does when it finds no other active keeper
        }
        assert!(old.has_all_ports(), "died after {steps} steps");
    }
}

#[test]
fn confirmation_sent_before_a_reset_or_a_deadline_counts() {
    let (new, old) = Channel::pair();
    send(&new, &Message::Confirm);
    assert!(
        give::confirmed(&old, Instant::now()),
        "past the deadline, but sent before"
    );

    let (new, old) = Channel::pair();
    send(&old, &Message::End);
    send(&new, &Message::Confirm);
    drop(new); // with End unread, which resets the connection
    assert!(give::confirmed(&old, soon()));

    let (new, old) = Channel::pair();
    assert!(!give::confirmed(&old, Instant::now()));
    let late = new.send(&Message::Confirm, &[], soon()).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_confirmation_counts_even_if_its_sender_hears_no_answer() {
    let old = Old::new();
    let (new, thread) = old.answer();
    take_all(&new);
    new.stop_receiving().unwrap();
    send(&new, &Message::Confirm);
    thread.join().unwrap();
    assert_eq!(
        old.table.role(),
        KeeperRole::Retired,
        "two keepers are active"
    );
}

#[test]
fn late_confirmation_fails_at_its_sender() {
    let old = Old::new();
    let (new, thread) = old.answer();
    send(&new, &Message::Take { v: VERSION });
    let start = Instant::now();
    thread.join().unwrap(); // it gets no Got and gives up at its deadline
    assert!(start.elapsed() < HANDOVER_TIMEOUT * 2);
    assert!(new.send(&Message::Confirm, &[], soon()).is_err());
    assert!(old.has_all_ports());
}

#[test]
fn second_taker_is_told_to_wait_and_unknown_messages_get_an_error() {
    let old = Old::new();
    let (first, thread) = old.answer();
    send(&first, &Message::Take { v: VERSION });
    receive(&first);
    for (ask, expected) in [
        (Message::Take { v: VERSION }, Message::Busy),
        (status(VERSION, false), Message::Active),
        (status(VERSION, true), Message::Active),
        (status(99, false), Message::Active),
    ] {
        let (second, thread) = old.answer();
        send(&second, &ask);
        assert_eq!(receive(&second).0, expected);
        thread.join().unwrap();
    }
    for ask in [Message::Take { v: 99 }, Message::Confirm] {
        let (second, thread) = old.answer();
        send(&second, &ask);
        assert!(matches!(receive(&second).0, Message::Error(_)));
        thread.join().unwrap();
    }
    drop(first);
    thread.join().unwrap();
    assert!(old.has_all_ports());
}

/// Plays an old keeper at a socket in the run directory.
fn fake_peer(
    old: &Old,
    play: impl Fn(Channel) + Send + 'static,
    connections: usize,
) -> (PathBuf, JoinHandle<()>) {
    let path = old.dir.path().join("keeper-0-1.sock");
    let (listener, published): (_, Published) =
        super::super::socket::listen(&path, rustix::net::SocketType::SEQPACKET).unwrap();
    let thread = thread::spawn(move || {
        for _ in 0..connections {
            play(Channel::accept(&listener).unwrap());
        }
        // like a keeper that dies: its file stays
        drop(listener);
        std::mem::forget(published);
    });
    (path, thread)
}

#[test]
fn new_keeper_keeps_what_came_from_a_peer_that_died() {
    let old = Old::new();
    let (path, thread) = fake_peer(
        &old,
        |peer| {
            receive(&peer);
            let some: Vec<_> = sockets().into_iter().take(10).collect();
            let fds: Vec<_> = some.iter().map(|(_, fd)| fd.as_fd()).collect();
            let held = some.iter().map(|(port, _)| *port).collect();
            send(
                &peer,
                &Message::Offer {
                    ports: 20,
                    sockets: 20,
                    polls: false,
                },
            );
            peer.send(
                &Message::Batch {
                    held,
                    without_socket: vec![],
                },
                &fds,
                soon(),
            )
            .unwrap();
            receive(&peer);
        },
        1,
    );
    let taken = take_over(&old.run_dir, 1000).unwrap();
    thread.join().unwrap();
    assert_eq!(
        (taken.ports.len(), taken.unfinished + taken.silent),
        (10, 0)
    );
    assert!(!path.exists(), "its socket is removed");
}

#[test]
fn new_keeper_drops_what_came_from_a_peer_that_still_runs() {
    let old = Old::new();
    // the peer closes each connection after one batch; the deadline ends the retries
    let (path, thread) = fake_peer(
        &old,
        |peer| {
            receive(&peer);
            let (port, fd) = sockets().pop().unwrap();
            send(
                &peer,
                &Message::Offer {
                    ports: 2,
                    sockets: 2,
                    polls: false,
                },
            );
            let _ = peer.send(
                &Message::Batch {
                    held: vec![port],
                    without_socket: vec![],
                },
                &[fd.as_fd()],
                soon(),
            );
            let _ = peer.recv(Some(soon()));
        },
        5,
    );
    let room = 1;
    let taken = take_over(&old.run_dir, room);
    assert!(matches!(taken, Err(NoRoom { sockets: 2 })));
    // asks until the fake peer has used up its connections
    let taken = take_over(&old.run_dir, 1000).unwrap();
    assert_eq!(
        (taken.ports.len(), taken.unfinished + taken.silent),
        (1, 0),
        "the peer died, so its port is kept"
    );
    thread.join().unwrap();
    assert!(!path.exists());
}

#[test]
fn sockets_not_bound_to_their_port_are_not_adopted() {
    let mut some = sockets();
    let (udp, socket) = some.pop().unwrap();
    let (tcp, other) = some.pop().unwrap();
    assert!(HeldPort::adopt((Protocol::Sctp, udp.1), socket.try_clone().unwrap()).is_err());
    assert!(HeldPort::adopt((Protocol::Tcp, udp.1), socket.try_clone().unwrap()).is_err());
    assert!(HeldPort::adopt(tcp, socket).is_err());
    rustix::net::listen(&other, 1).unwrap();
    assert!(HeldPort::adopt(tcp, other).is_err(), "listens");
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(HeldPort::adopt(tcp, file.into()).is_err());
}
