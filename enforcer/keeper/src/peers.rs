//! Dealing with the other keepers of the node, before and after the start.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::handover::{self, Channel, NoRoom, Predecessors, Taken};
use super::run_dir::RunDir;
use super::table::Table;
use super::wire::Duty;
use super::{ACCEPT_PAUSE, KeeperError, spawn};

/// How often a peer that lived but did not hand over is asked again.
const RETRY_PERIOD: Duration = Duration::from_secs(1);
/// Most connections of other keepers at a time.
const MAX_CONNECTIONS: usize = 8;

/// Takes the ports of every living keeper into the table.
pub(super) fn take_over(
    table: &Table,
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

/// Lives as long as the process, since predecessors take the end of their connection for its
/// death. Meanwhile asks those again that did not hand over at the start.
pub(super) fn keep_predecessors(
    mut predecessors: Predecessors,
    mut unfinished: usize,
    table: &Table,
    run_dir: &RunDir,
) {
    while unfinished > 0 && table.duty() != Duty::Retired {
        thread::sleep(RETRY_PERIOD);
        // a keeper that takes over from this one meanwhile would miss what comes in here
        let Ok(Some(_lock)) = run_dir.lock(Instant::now()) else {
            continue;
        };
        match take_over(table, run_dir) {
            Ok((more, still)) => {
                predecessors.extend(more);
                unfinished = still;
            }
            Err(error) => tracing::error!(%error, "cannot take over"),
        }
    }
    loop {
        thread::park();
    }
}

/// Answers other keepers for as long as the process lives.
pub(super) fn serve_peers(listener: &OwnedFd, table: &Arc<Table>, run_dir: &Arc<RunDir>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let peer = match Channel::accept(listener) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "cannot accept another keeper");
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue; // it finds its connection closed, and asks again
        }
        let (table, run_dir, count) = (Arc::clone(table), Arc::clone(run_dir), Arc::clone(&open));
        let spawned = spawn("peer", move || {
            handover::answer(&table, &run_dir, &peer);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            open.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot answer another keeper");
        }
    }
}
