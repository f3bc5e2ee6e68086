//! The other keepers of the node. One keeper is active and holds the ports; all others are retired and
//! take over when it is their turn.
//!
//! A keeper that starts next to an active one does not take over by itself, because its enforcer may
//! never start. A retired keeper, whether it has handed over or has just started, becomes active when
//! - its enforcer asks for it: it is able to act;
//! - no other keeper is active, or the active one ends;
//! - the active one has lost its enforcer, and this one has an enforcer;
//! - one that may be the active one has not answered for 10 s, and this one has an enforcer.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::handover::{self, Channel, NoRoom, PeerState, Predecessors, RETAIN, Taken};
use super::run_dir::RunDir;
use super::socket::Published;
use super::table::PortTable;
use super::wire::KeeperRole;
use super::{ACCEPT_PAUSE, KeeperError, LOCK_TIMEOUT, setup, spawn};

/// How often a retired keeper asks what the others do.
const POLL_PERIOD: Duration = Duration::from_millis(200);
/// Pause after a failed takeover, and between two tries to take over from a peer that does not answer.
const RETRY_PERIOD: Duration = Duration::from_secs(1);
/// How long another keeper may not answer, until this one becomes active without its ports: it may be
/// frozen for ever, and the node needs an enforcer.
const SILENCE: Duration = Duration::from_secs(10);
/// Most connections of other keepers at a time.
const MAX_CONNECTIONS: usize = 8;

/// This keeper among the others.
pub(super) struct Peers {
    pub(super) table: PortTable,
    run_dir: RunDir,
    open: Mutex<Open>,
}

/// What is left of the takeovers of this keeper.
#[derive(Default)]
struct Open {
    /// Only keepers of earlier versions.
    predecessors: Predecessors,
    /// How many running peers did not hand over in time.
    unfinished: usize,
    /// Since when a peer has not answered.
    silent_since: Option<Instant>,
}

impl Peers {
    pub(super) fn new(table: PortTable, run_dir: RunDir) -> Self {
        Self {
            table,
            run_dir,
            open: Mutex::default(),
        }
    }

    /// Retires if another keeper is active; else takes what ending keepers hold. Then listens for other
    /// keepers.
    pub(super) fn start(&self) -> Result<(OwnedFd, Published), KeeperError> {
        let lock = self
            .run_dir
            .lock(Instant::now() + LOCK_TIMEOUT)
            .map_err(|source| setup("the lock of the run directory", source))?;
        // without the lock another keeper may be about to become active
        let taken = if lock.is_some() && self.survey() <= PeerState::Ending {
            self.take()
        } else {
            tracing::info!(
                "another keeper of this node holds the ports; this one takes them over when its \
                 enforcer is able to act"
            );
            self.table.stand_by();
            Ok(())
        };
        match taken {
            Err(error @ KeeperError::NotHandedOver { .. }) => {
                tracing::warn!(%error, "trying again");
                self.table.stand_by();
            }
            other => other?,
        }
        self.run_dir
            .publish()
            .map_err(|source| setup("the socket in the run directory", source))
    }

    /// Makes this keeper active, as its enforcer asked. Returns the role: retired if another keeper is
    /// just starting or taking over.
    pub(super) fn take_over(&self) -> Result<KeeperRole, KeeperError> {
        let lock = self
            .run_dir
            .lock(Instant::now() + LOCK_TIMEOUT)
            .map_err(|source| setup("the lock of the run directory", source))?;
        if lock.is_some() && self.table.role() == KeeperRole::Retired {
            self.take()?;
        }
        Ok(self.table.role())
    }

    /// Takes the ports of every running keeper and becomes active. Needs the lock of the run directory:
    /// between the two steps no keeper is active. Fails while another keeper may be active and does not
    /// hand over: two active ones would take the node from each other.
    fn take(&self) -> Result<(), KeeperError> {
        let room = self.table.room;
        let taken = handover::take_over(&self.run_dir, room)
            .map_err(|NoRoom { sockets }| KeeperError::NoRoomToTakeOver { sockets, room })?;
        let Taken {
            ports,
            predecessors,
            handed_over,
            unfinished,
            silent,
        } = taken;
        self.record_silence(silent > 0);
        if !handed_over && (unfinished > 0 || (silent > 0 && !self.is_passed_over())) {
            return Err(KeeperError::NotHandedOver {
                busy: unfinished,
                silent,
            });
        }
        let has_more = self.table.adopt(ports);
        // an active one says it again only where its enforcer has to learn of ports
        if has_more || self.table.role() != KeeperRole::Active {
            self.table.resume();
        }
        let mut open = self.open.lock();
        open.predecessors.extend(predecessors);
        open.unfinished = unfinished + silent;
        Ok(())
    }

    /// Records whether a peer does not answer now.
    fn record_silence(&self, is_silent: bool) {
        let since = &mut self.open.lock().silent_since;
        *since = is_silent.then(|| since.unwrap_or_else(Instant::now));
    }

    /// Returns whether a peer has not answered for so long that it is passed over.
    fn is_passed_over(&self) -> bool {
        let since = self.open.lock().silent_since;
        since.is_some_and(|since| since.elapsed() >= SILENCE)
    }

    /// Asks what the others do.
    fn survey(&self) -> PeerState {
        let state = handover::survey(&self.run_dir);
        self.record_silence(state == PeerState::Silent);
        state
    }

    /// Becomes active when it is this keeper's turn, for as long as the process lives.
    pub(super) fn follow(&self) {
        loop {
            match self.table.role() {
                KeeperRole::Retired => self.watch_active_keeper(),
                KeeperRole::Active => self.finish_takeover(),
                KeeperRole::Frozen => {}
            }
            thread::sleep(POLL_PERIOD);
        }
    }

    fn watch_active_keeper(&self) {
        self.table.close_copies(RETAIN);
        if !self.is_next() {
            return;
        }
        let lock = match self.run_dir.lock(Instant::now()) {
            Ok(Some(lock)) => lock,
            // a keeper that starts or takes over has it: asked again in the next round
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "cannot lock the run directory to take the ports over; trying again");
                thread::sleep(RETRY_PERIOD);
                return;
            }
        };
        if self.table.role() != KeeperRole::Retired || !self.is_next() {
            return;
        }
        tracing::warn!(
            "the active keeper ended, lost its enforcer or does not answer; this keeper takes the ports over"
        );
        if let Err(error) = self.take() {
            tracing::error!(%error, "cannot take over; trying again");
            // so that an enforcer that asks during the wait gets the reason
            drop(lock);
            thread::sleep(RETRY_PERIOD);
        }
    }

    fn is_next(&self) -> bool {
        !self.table.is_ending()
            && match self.survey() {
                PeerState::Retired | PeerState::Ending => true,
                PeerState::Unattended => self.table.is_attended(),
                PeerState::Silent => self.table.is_attended() && self.is_passed_over(),
                PeerState::Attended => false,
            }
    }

    /// Asks those peers again that did not hand over. Gives the node back to a predecessor that waits
    /// for the end of its connection, when this keeper has lost its enforcer.
    fn finish_takeover(&self) {
        let (waiting, unfinished) = {
            let mut open = self.open.lock();
            open.predecessors.retain(Channel::is_open);
            (!open.predecessors.is_empty(), open.unfinished)
        };
        if unfinished > 0 {
            thread::sleep(RETRY_PERIOD);
            if let Ok(Some(_lock)) = self.run_dir.lock(Instant::now())
                && self.table.role() == KeeperRole::Active
                && let Err(error) = self.take()
            {
                tracing::error!(%error, "cannot take over from another keeper; trying again");
            }
        } else if !waiting {
            self.table.await_retirement();
        } else if !self.table.is_attended() && self.table.stand_by() {
            tracing::warn!("the enforcer ended; the earlier keeper becomes active again");
            self.open.lock().predecessors.clear();
            // time for that keeper to become active
            thread::sleep(RETRY_PERIOD);
        }
    }
}

/// Answers other keepers for as long as the process lives.
pub(super) fn serve_peers(listener: &OwnedFd, peers: &Arc<Peers>) {
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
        let (peers, count) = (Arc::clone(peers), Arc::clone(&open));
        let spawned = spawn("peer", move || {
            handover::answer(&peers.table, &peer);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            open.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "cannot answer another keeper; it asks again");
        }
    }
}

#[cfg(test)]
mod tests;
