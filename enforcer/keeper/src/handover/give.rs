//! The old keeper's side.

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use super::super::bind::HeldPort;
use super::super::run_dir::RunDir;
use super::super::table::{Frozen, OffDuty, Table};
use super::super::wire::{Duty, Port, VERSION};
use super::{
    BATCH, Channel, FIRST_ANSWER_TIMEOUT, HANDOVER_TIMEOUT, Message, RETAIN, other_active,
    unexpected,
};

/// How often a retired keeper whose successor ended looks for another one.
const SUCCESSOR_POLL: Duration = Duration::from_millis(500);

/// Answers one peer. After a handover it stays for as long as this keeper is retired.
pub(crate) fn answer(table: &Table, run_dir: &RunDir, peer: &Channel) {
    let deadline = Instant::now() + FIRST_ANSWER_TIMEOUT;
    let reply = |message: &Message| peer.send(message, &[], deadline);
    let done = match peer.recv(Some(deadline)) {
        Ok(Some((Message::Take { v: VERSION }, _))) => match table.freeze() {
            Ok(frozen) => return hand_over(frozen, table, run_dir, peer),
            Err(OffDuty(Duty::Retired)) => reply(&Message::Retired),
            Err(OffDuty(_)) => reply(&Message::Busy),
        },
        // one that is frozen answers for its ports until it has retired
        Ok(Some((Message::Status { .. }, _))) => reply(match table.duty() {
            Duty::Active | Duty::Frozen => &Message::Active,
            Duty::Retired => &Message::Retired,
        }),
        Ok(Some((message, _))) => reply(&Message::Error(format!(
            "version {VERSION} here; cannot answer {message:?}"
        ))),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a peer got no answer");
    }
}

fn hand_over(frozen: Frozen<'_>, table: &Table, run_dir: &RunDir, peer: &Channel) {
    let count = frozen.ports.len();
    let deadline = Instant::now() + HANDOVER_TIMEOUT;
    if let Err(error) = send_all(&frozen.ports, peer, deadline) {
        tracing::warn!(%error, ports = count, "handover broke off; the ports stay here");
        return;
    }
    // a failing send means that the successor is dead already
    if !confirmed(peer, deadline) || peer.send(&Message::Done, &[], deadline).is_err() {
        tracing::warn!(
            ports = count,
            "handover was not confirmed; the ports stay here"
        );
        return;
    }
    frozen.retire();
    tracing::info!(ports = count, "handed over; retired");
    if ended(peer, Some(Instant::now() + RETAIN)) && !successor_active(run_dir) {
        tracing::warn!(
            ports = count,
            "the successor died at once; the ports stay here"
        );
        return;
    }
    frozen.let_go();
    ended(peer, None);
    while successor_active(run_dir) {
        thread::sleep(SUCCESSOR_POLL);
    }
    tracing::warn!("the successor is gone; answering again, with nothing held");
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
        let (mut held, mut noted) = (Vec::new(), Vec::new());
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        for (port, socket) in batch.iter().map(|(port, held)| (*port, held.socket())) {
            if let Some(fd) = socket {
                held.push(port);
                fds.push(fd);
            } else {
                noted.push(port);
            }
        }
        peer.send(&Message::Batch { held, noted }, &fds, deadline)?;
        match peer.recv(Some(deadline))? {
            Some((Message::Got, _)) => {}
            Some((message, _)) => return Err(unexpected(&message)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    peer.send(&Message::End, &[], deadline)
}

/// Whether the successor confirmed. Where this says no, no confirmation can be sent any more.
pub(super) fn confirmed(peer: &Channel, deadline: Instant) -> bool {
    if let Ok(Some((message, _))) = peer.recv(Some(deadline)) {
        return message == Message::Confirm;
    }
    if peer.stop_receiving().is_err() {
        return false;
    }
    // a second try, because the first may report a reset of the connection ahead of the queue
    (0..2).any(|_| matches!(peer.recv(Some(deadline)), Ok(Some((Message::Confirm, _)))))
}

/// Whether the connection ends before the deadline.
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
    // held while looking: a keeper that is just starting publishes itself before it unlocks
    let _lock = run_dir.lock(deadline);
    other_active(run_dir, deadline + FIRST_ANSWER_TIMEOUT)
}
