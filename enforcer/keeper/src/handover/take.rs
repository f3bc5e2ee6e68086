//! The new keeper's side of a handover.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use portmapping_shared::PortKey;
use rustix::io::Errno;

use super::super::bind::HeldPort;
use super::super::run_dir::RunDir;
use super::super::socket;
use super::super::wire::VERSION;
use super::{Channel, FIRST_ANSWER_TIMEOUT, HANDOVER_TIMEOUT, Message, left, unexpected};

/// Pause before a peer is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How often a peer is asked that does not answer: on a busy node one answer may come late.
const SILENT_TRIES: u32 = 2;

/// Connections to keepers that handed over and do not ask for the status of this one. Such a keeper
/// waits for the end of its connection, and is then active again.
pub(crate) type Predecessors = Vec<Channel>;

/// What the peers handed over.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Ports that this keeper holds from now on.
    pub(crate) ports: Vec<(PortKey, HeldPort)>,
    /// Connections to keep open while this keeper is active.
    pub(crate) predecessors: Predecessors,
    /// Whether the keeper that was active has handed over: only an active one does.
    pub(crate) handed_over: bool,
    /// How many peers answer, and did not hand over in time: they may hold the node's ports.
    pub(crate) unfinished: usize,
    /// How many peers run, and do not answer.
    pub(crate) silent: usize,
}

/// A peer holds more sockets than this process may have open files.
#[derive(Debug)]
pub(crate) struct NoRoom {
    pub(crate) sockets: usize,
}

enum Attempt {
    Whole(Vec<(PortKey, HeldPort)>, Option<Channel>),
    /// The connection failed after these ports had arrived.
    Partial(Vec<(PortKey, HeldPort)>),
    Dead,
    Retired,
    /// Another handover is running, or the connection ended early: try again.
    Busy,
    /// It answers, and will not hand over.
    Refused,
    Silent,
    NoRoom(NoRoom),
}

/// Takes over from every running peer, within [`HANDOVER_TIMEOUT`] for all of them together.
pub(crate) fn take_over(run_dir: &RunDir, room: usize) -> Result<Taken, NoRoom> {
    let deadline = Instant::now() + HANDOVER_TIMEOUT;
    let mut taken = Taken::default();
    let peers = run_dir.peers().unwrap_or_else(|error| {
        tracing::error!(%error, "cannot list other keepers; starting without their ports");
        Vec::new()
    });
    for peer in peers {
        take_from(&peer, room, deadline, &mut taken)?;
    }
    Ok(taken)
}

fn take_from(peer: &Path, room: usize, deadline: Instant, taken: &mut Taken) -> Result<(), NoRoom> {
    let mut partial = Vec::new();
    let mut silences = 0;
    let start = Instant::now();
    loop {
        match attempt(peer, room.saturating_sub(taken.ports.len()), deadline) {
            Attempt::Whole(ports, channel) => {
                let (count, took) = (ports.len(), start.elapsed());
                tracing::info!(peer = %peer.display(), ports = count, ?took, "took over ports of another keeper");
                taken.ports.extend(ports);
                taken.predecessors.extend(channel);
                taken.handed_over = true;
                return Ok(());
            }
            Attempt::Dead => {
                if !partial.is_empty() {
                    tracing::warn!(
                        ports = partial.len(),
                        "another keeper ended during the handover; the ports that arrived are kept"
                    );
                }
                taken.ports.append(&mut partial);
                return Ok(());
            }
            // its successor holds them, and is a peer too
            Attempt::Retired => return Ok(()),
            Attempt::NoRoom(error) => return Err(error),
            // kept: if the peer turns out to be dead, no other process holds these ports
            Attempt::Partial(ports) if ports.len() > partial.len() => partial = ports,
            Attempt::Partial(_) | Attempt::Busy => {}
            Attempt::Refused => {
                taken.unfinished += 1;
                break;
            }
            Attempt::Silent => silences += 1,
        }
        if silences == SILENT_TRIES {
            taken.silent += 1;
            break;
        }
        if left(deadline).is_zero() {
            taken.unfinished += 1;
            break;
        }
        thread::sleep(RETRY_PAUSE.min(left(deadline)));
    }
    tracing::warn!(peer = %peer.display(), "another keeper runs but does not hand over its ports; trying again later");
    Ok(())
}

fn attempt(peer: &Path, room: usize, deadline: Instant) -> Attempt {
    let first = deadline.min(Instant::now() + FIRST_ANSWER_TIMEOUT);
    let channel = match open(peer, &Message::Take { v: VERSION }, first) {
        Ok(Some(channel)) => channel,
        Ok(None) => return Attempt::Dead,
        Err(error) => return failed(&error),
    };
    match channel.recv(Some(first)) {
        Ok(Some((Message::Offer { sockets, .. }, _))) if sockets > room => {
            Attempt::NoRoom(NoRoom { sockets })
        }
        Ok(Some((Message::Offer { polls, .. }, _))) => receive(channel, polls, deadline),
        Ok(Some((Message::Retired, _))) => Attempt::Retired,
        Ok(Some((Message::Busy, _)) | None) => Attempt::Busy,
        Ok(Some((message, _))) => {
            tracing::error!(peer = %peer.display(), ?message, "another keeper refused to hand over; trying again later");
            Attempt::Refused
        }
        Err(error) => failed(&error),
    }
}

fn receive(channel: Channel, polls: bool, deadline: Instant) -> Attempt {
    let mut ports = Vec::new();
    let whole = receive_all(&channel, deadline, &mut ports)
        .and_then(|()| channel.send(&Message::Confirm, &[], deadline));
    if let Err(error) = whole {
        tracing::warn!(%error, ports = ports.len(), "the handover failed");
        return Attempt::Partial(ports);
    }
    // the confirmation was sent: a peer that hangs now reads it when it continues
    match channel.recv(Some(deadline)) {
        Ok(Some((Message::Done, _))) => {}
        other => tracing::warn!(
            ?other,
            "another keeper did not confirm that it retired; its ports are held here"
        ),
    }
    Attempt::Whole(ports, (!polls).then_some(channel))
}

fn receive_all(
    channel: &Channel,
    deadline: Instant,
    ports: &mut Vec<(PortKey, HeldPort)>,
) -> io::Result<()> {
    loop {
        match channel.recv(Some(deadline))? {
            Some((
                Message::Batch {
                    held,
                    without_socket,
                },
                fds,
            )) => {
                if held.len() != fds.len() {
                    return Err(unexpected(&Message::Batch {
                        held,
                        without_socket,
                    }));
                }
                ports.extend(
                    held.into_iter()
                        .zip(fds)
                        .filter_map(|(port, fd)| adopt(port, fd)),
                );
                ports.extend(
                    without_socket
                        .into_iter()
                        .map(|port| (port, HeldPort::without_socket())),
                );
                channel.send(&Message::Got, &[], deadline)?;
            }
            Some((Message::End, _)) => return Ok(()),
            Some((message, _)) => return Err(unexpected(&message)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn adopt(port: PortKey, fd: OwnedFd) -> Option<(PortKey, HeldPort)> {
    HeldPort::adopt(port, fd)
        .inspect_err(|error| tracing::error!(?port, %error, "a received socket is not bound to its port as announced; it is dropped"))
        .ok()
        .map(|held| (port, held))
}

/// What the most active one of the other keepers does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PeerState {
    /// No other keeper holds the node's ports.
    Retired,
    /// It holds them and ends.
    Ending,
    /// It holds them, and no enforcer is connected to it.
    Unattended,
    /// It does not answer, so it may hold them.
    Silent,
    /// It holds them for its enforcer.
    Attended,
}

/// Asks every other keeper what it does.
pub(crate) fn survey(run_dir: &RunDir) -> PeerState {
    let deadline = Instant::now() + HANDOVER_TIMEOUT;
    let ask = Message::Status {
        v: VERSION,
        details: true,
    };
    let state = |peer: &Path| {
        let first = deadline.min(Instant::now() + FIRST_ANSWER_TIMEOUT);
        let answer = match open(peer, &ask, first) {
            Ok(None) => return PeerState::Retired,
            Ok(Some(channel)) => channel.recv(Some(first)),
            Err(error) => Err(error),
        };
        match answer {
            Ok(Some((Message::Retired, _))) => PeerState::Retired,
            Ok(Some((Message::Ending, _))) => PeerState::Ending,
            Ok(Some((Message::Unattended, _))) => PeerState::Unattended,
            Ok(_) => PeerState::Attended,
            // it ended after the connect: the next question is refused
            Err(error) if is_end(&error) => PeerState::Attended,
            Err(_) => PeerState::Silent,
        }
    };
    // an unreadable directory has no peers that could be asked to hand over
    let peers = run_dir.peers().unwrap_or_default();
    let states = peers.iter().map(|peer| state(peer));
    states.max().unwrap_or(PeerState::Retired)
}

/// Connects and sends the request. Returns None for a dead keeper, whose socket file it removes, and for a
/// socket that is no keeper's.
fn open(peer: &Path, ask: &Message, deadline: Instant) -> io::Result<Option<Channel>> {
    match Channel::connect(peer, deadline) {
        Ok(channel) => {
            match channel.send(ask, &[], deadline) {
                // it died after the connect: the next connect is refused
                Err(error) if is_end(&error) => {}
                other => other?,
            }
            Ok(Some(channel))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // a socket file gets its name only once its keeper listens, so this keeper is dead
            socket::remove_if_there(peer)?;
            tracing::info!(peer = %peer.display(), "removed the socket of a dead keeper");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn failed(error: &io::Error) -> Attempt {
    if is_end(error) {
        return Attempt::Busy;
    }
    tracing::warn!(%error, "another keeper does not answer; trying again later");
    Attempt::Silent
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}
