//! The old keeper's side of a handover.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use super::super::bind::HeldPort;
use super::super::run_dir::RunDir;
use super::super::table::{Frozen, NotActive, PortTable};
use super::super::wire::{KeeperRole, Port, VERSION};
use super::{
    BATCH, Channel, FIRST_ANSWER_TIMEOUT, HANDOVER_TIMEOUT, Message, RETAIN, other_active,
    unexpected,
};

/// How often a retired keeper whose successor ended checks for another active keeper.
const SUCCESSOR_POLL: Duration = Duration::from_millis(500);

/// Answers one peer. After a handover it returns only when this keeper is no longer retired.
pub(crate) fn answer(table: &PortTable, run_dir: &RunDir, peer: &Channel) {
    let deadline = Instant::now() + FIRST_ANSWER_TIMEOUT;
    let reply = |message: &Message| peer.send(message, &[], deadline);
    let done = match peer.recv(Some(deadline)) {
        Ok(Some((Message::Take { v: VERSION }, _))) => match table.freeze() {
            Ok(frozen) => return hand_over(frozen, table, run_dir, peer),
            Err(NotActive(KeeperRole::Retired)) => reply(&Message::Retired),
            Err(NotActive(_)) => reply(&Message::Busy),
        },
        // a frozen keeper still holds the ports until it has retired
        Ok(Some((Message::Status { .. }, _))) => reply(match table.role() {
            KeeperRole::Active | KeeperRole::Frozen => &Message::Active,
            KeeperRole::Retired => &Message::Retired,
        }),
        Ok(Some((message, _))) => reply(&Message::Error(format!(
            "version {VERSION} here; cannot answer {message:?}"
        ))),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "another keeper could not be answered");
    }
}

fn hand_over(frozen: Frozen<'_>, table: &PortTable, run_dir: &RunDir, peer: &Channel) {
    let count = frozen.ports.len();
    let deadline = Instant::now() + HANDOVER_TIMEOUT;
    if let Err(error) = send_all(&frozen.ports, peer, deadline) {
        tracing::warn!(%error, ports = count, "the handover failed; this keeper keeps the ports");
        return;
    }
    // a failing send means that the successor is already dead
    if !confirmed(peer, deadline) || peer.send(&Message::Done, &[], deadline).is_err() {
        tracing::warn!(
            ports = count,
            "the handover was not confirmed; this keeper keeps the ports"
        );
        return;
    }
    frozen.retire();
    tracing::info!(
        ports = count,
        "another keeper holds the ports now; this one is retired"
    );
    if ended(peer, Some(Instant::now() + RETAIN)) && !successor_active(run_dir) {
        tracing::warn!(
            ports = count,
            "the successor died right after the handover; this keeper keeps the ports"
        );
        return;
    }
    frozen.close_sockets();
    ended(peer, None);
    while successor_active(run_dir) {
        thread::sleep(SUCCESSOR_POLL);
    }
    tracing::warn!("the successor has ended; this keeper is active again and holds no ports yet");
    table.resume();
}

fn send_all(ports: &[(Port, HeldPort)], peer: &Channel, deadline: Instant) -> io::Result<()> {
    let sockets = ports
        .iter()
        .filter(|(_, held)| held.socket().is_some())
        .count();
    peer.send(
        &Message::Offer {
            ports: ports.len(),
            sockets,
        },
        &[],
        deadline,
    )?;
    for batch in ports.chunks(BATCH) {
        let (mut held, mut without_socket) = (Vec::new(), Vec::new());
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        for (port, socket) in batch.iter().map(|(port, held)| (*port, held.socket())) {
            if let Some(fd) = socket {
                held.push(port);
                fds.push(fd);
            } else {
                without_socket.push(port);
            }
        }
        peer.send(
            &Message::Batch {
                held,
                without_socket,
            },
            &fds,
            deadline,
        )?;
        match peer.recv(Some(deadline))? {
            Some((Message::Got, _)) => {}
            Some((message, _)) => return Err(unexpected(&message)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    peer.send(&Message::End, &[], deadline)
}

/// Returns whether the successor confirmed. After false, it can no longer send a confirmation.
pub(super) fn confirmed(peer: &Channel, deadline: Instant) -> bool {
    if let Ok(Some((message, _))) = peer.recv(Some(deadline)) {
        return message == Message::Confirm;
    }
    if peer.stop_receiving().is_err() {
        return false;
    }
    // twice, because the first receive may report a connection reset before the queued message
    (0..2).any(|_| matches!(peer.recv(Some(deadline)), Ok(Some((Message::Confirm, _)))))
}

/// Waits for the end of the connection; false if the deadline comes first.
fn ended(peer: &Channel, deadline: Option<Instant>) -> bool {
    loop {
        match peer.recv(deadline) {
            Ok(Some(_)) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(None) | Err(_) => return true,
        }
    }
}

fn successor_active(run_dir: &RunDir) -> bool {
    let deadline = Instant::now() + HANDOVER_TIMEOUT;
    // a starting keeper holds the lock until its socket exists, so none is missed
    let _lock = run_dir.lock(deadline);
    other_active(run_dir, deadline + FIRST_ANSWER_TIMEOUT)
}
