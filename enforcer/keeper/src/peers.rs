//! The other keepers of the node: takes over from them at the start, answers them later.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::handover::{self, Channel, NoRoom, Predecessors, Taken};
use super::run_dir::RunDir;
use super::table::PortTable;
use super::wire::KeeperRole;
use super::{ACCEPT_PAUSE, KeeperError, spawn};

/// How often a running peer that did not hand over is asked again.
const RETRY_PERIOD: Duration = Duration::from_secs(1);
/// Most connections of other keepers at a time.
const MAX_CONNECTIONS: usize = 8;

/// Takes the ports of every running keeper into the table.
pub(super) fn take_over(
    table: &PortTable,
    run_dir: &RunDir,
) -> Result<(Predecessors, usize), KeeperError> {
    let taken = handover::take_over(run_dir, table.room).map_err(|NoRoom { sockets }| {
        KeeperError::NoRoomToTakeOver {
            sockets,
            room: table.room,
        }
    })?;
    let Taken {
        ports,
        predecessors,
        unfinished,
    } = taken;
    table.adopt(ports);
    Ok((predecessors, unfinished))
}

/// Keeps the connections to predecessors open until the process ends, because a predecessor whose
/// connection ends assumes that this keeper died. Asks those again that did not hand over at the
/// start.
pub(super) fn keep_predecessors(
    mut predecessors: Predecessors,
    mut unfinished: usize,
    table: &PortTable,
    run_dir: &RunDir,
) {
    while unfinished > 0 && table.role() != KeeperRole::Retired {
        thread::sleep(RETRY_PERIOD);
        // without the lock, a keeper that takes over from this one now would miss these ports
        let Ok(Some(_lock)) = run_dir.lock(Instant::now()) else {
            continue;
        };
        match take_over(table, run_dir) {
            Ok((more, still)) => {
                predecessors.extend(more);
                unfinished = still;
            }
            Err(error) => {
                tracing::error!(%error, "cannot take over from another keeper; trying again");
            }
        }
    }
    loop {
        thread::park();
    }
}

/// Answers other keepers for as long as the process lives.
pub(super) fn serve_peers(listener: &OwnedFd, table: &Arc<PortTable>, run_dir: &Arc<RunDir>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let peer = match Channel::accept(listener) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of another keeper; trying again");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue; // its connection is closed, and it asks again
        }
        let (table, run_dir, count) = (Arc::clone(table), Arc::clone(run_dir), Arc::clone(&open));
        let spawned = spawn("peer", move || {
            handover::answer(&table, &run_dir, &peer);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            open.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot answer another keeper; it asks again");
        }
    }
}
