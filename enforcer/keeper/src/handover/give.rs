//! The old keeper's side of a handover.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use portmapping_shared::PortKey;

use super::super::bind::HeldPort;
use super::super::table::{Frozen, NotActive, PortTable};
use super::super::wire::{KeeperRole, VERSION};
use super::{BATCH, Channel, FIRST_ANSWER_TIMEOUT, HANDOVER_TIMEOUT, Message, unexpected};

/// Answers one peer.
pub(crate) fn answer(table: &PortTable, peer: &Channel) {
    let deadline = Instant::now() + FIRST_ANSWER_TIMEOUT;
    let reply = |message: &Message| peer.send(message, &[], deadline);
    let done = match peer.recv(Some(deadline)) {
        Ok(Some((Message::Take { v: VERSION }, _))) => match table.freeze() {
            Ok(frozen) => return hand_over(frozen, peer),
            Err(NotActive(KeeperRole::Retired)) => reply(&Message::Retired),
            Err(NotActive(_)) => reply(&Message::Busy),
        },
        // a frozen keeper still holds the ports until it has retired
        Ok(Some((Message::Status { details, .. }, _))) => reply(match table.role() {
            KeeperRole::Retired => &Message::Retired,
            KeeperRole::Active | KeeperRole::Frozen if !details => &Message::Active,
            KeeperRole::Active | KeeperRole::Frozen if table.is_ending() => &Message::Ending,
            KeeperRole::Active | KeeperRole::Frozen if table.is_attended() => &Message::Active,
            KeeperRole::Active | KeeperRole::Frozen => &Message::Unattended,
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

fn hand_over(frozen: Frozen<'_>, peer: &Channel) {
    let count = frozen.ports.len();
    let deadline = Instant::now() + HANDOVER_TIMEOUT;
    if let Err(error) = send_all(&frozen.ports, peer, deadline) {
        tracing::warn!(%error, ports = count, "the handover failed; this keeper keeps the ports");
        return;
    }
    if !confirmed(peer, deadline) {
        tracing::warn!(
            ports = count,
            "the handover was not confirmed; this keeper keeps the ports"
        );
        return;
    }
    frozen.retire();
    // the confirmation has decided. Where the successor is dead by now, this keeper finds no active one, and
    // takes the ports back before it has closed its copies
    if let Err(error) = peer.send(&Message::Done, &[], deadline) {
        tracing::debug!(%error, "the successor could not be told that this keeper has retired");
    }
    tracing::info!(
        ports = count,
        "another keeper holds the ports now; this one is retired"
    );
}

fn send_all(ports: &[(PortKey, HeldPort)], peer: &Channel, deadline: Instant) -> io::Result<()> {
    let sockets = ports
        .iter()
        .filter(|(_, held)| held.socket().is_some())
        .count();
    peer.send(
        &Message::Offer {
            ports: ports.len(),
            sockets,
            polls: true,
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
