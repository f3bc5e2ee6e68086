//! The held ports, and the keeper's role.
//!
//! ```text
//! Active --freeze--> Frozen --retire--> Retired --resume--> Active
//!   |                  |                   ^
//!   |                  +--> Active         |   the successor died during the handover
//!   +------------- stand_by ---------------+   another keeper is active, or is to be
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Bound;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use portmapping_shared::{PortKey, Protocol};
use rustix::net::SendFlags;

use super::bind::HeldPort;
use super::wire::{self, Errno, HoldOutcome, KeeperRole, MAX_PORTS, Reply};

/// How long an enforcer may be without a connection: one that starts again in its process needs less.
const UNATTENDED: Duration = Duration::from_millis(500);

/// The keeper is not [`KeeperRole::Active`], so the request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotActive(pub(super) KeeperRole);

/// The held ports and the role, shared by all threads.
pub(super) struct PortTable {
    inner: Mutex<TableState>,
    role_changed: Condvar,
    bind: fn(PortKey) -> io::Result<HeldPort>,
    /// Most sockets that fit into the limit of open files.
    pub(super) room: usize,
}

struct TableState {
    held: BTreeMap<PortKey, HeldPort>,
    sockets: usize,
    role: KeeperRole,
    /// Since when it is retired; it may have copies of the sockets until they are closed.
    retired_at: Option<Instant>,
    ending: bool,
    watcher: Option<(u64, UnixStream)>,
    /// When the last watcher's connection ended.
    unwatched_at: Instant,
}

impl PortTable {
    /// An empty table that binds with `bind`, up to `room` sockets.
    pub(super) fn new(room: usize, bind: fn(PortKey) -> io::Result<HeldPort>) -> Self {
        let (held, role) = (BTreeMap::new(), KeeperRole::Active);
        let inner = Mutex::new(TableState {
            held,
            sockets: 0,
            role,
            retired_at: None,
            ending: false,
            watcher: None,
            unwatched_at: Instant::now(),
        });
        Self {
            inner,
            role_changed: Condvar::new(),
            bind,
            room,
        }
    }

    /// Holds each port, or returns why not. A port that is already held stays as it is.
    pub(super) fn hold(&self, ports: &[PortKey]) -> Result<Vec<HoldOutcome>, NotActive> {
        let mut inner = self.inner.lock();
        inner.require_active()?;
        Ok(ports
            .iter()
            .map(|port| self.hold_one(&mut inner, *port))
            .collect())
    }

    fn hold_one(&self, inner: &mut TableState, port: PortKey) -> HoldOutcome {
        let full = port.0 != Protocol::Sctp && inner.sockets >= self.room;
        let held = match inner.held.entry(port) {
            Entry::Occupied(entry) => return outcome_of(entry.get()),
            // refused before the kernel does, so that descriptors for connections are left
            Entry::Vacant(_) if full => {
                return HoldOutcome::Refused(Errno(rustix::io::Errno::MFILE.raw_os_error()));
            }
            Entry::Vacant(entry) => match (self.bind)(port) {
                Ok(held) => entry.insert(held),
                Err(error) => {
                    let unknown = rustix::io::Errno::IO.raw_os_error();
                    return HoldOutcome::Refused(Errno(error.raw_os_error().unwrap_or(unknown)));
                }
            },
        };
        inner.sockets += usize::from(held.socket().is_some());
        outcome_of(held)
    }

    /// Closes the ports; returns how many were held.
    pub(super) fn release(&self, ports: &[PortKey]) -> Result<usize, NotActive> {
        let mut inner = self.inner.lock();
        inner.require_active()?;
        let mut released = 0;
        for port in ports {
            if let Some(held) = inner.held.remove(port) {
                inner.sockets -= usize::from(held.socket().is_some());
                released += 1;
            }
        }
        Ok(released)
    }

    /// Returns the next [`MAX_PORTS`] held ports above `after`, and whether there are more.
    pub(super) fn page(&self, after: Option<PortKey>) -> Result<(Vec<PortKey>, bool), NotActive> {
        let inner = self.inner.lock();
        inner.require_active()?;
        let above = (
            after.map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        );
        let mut rest = inner.held.range(above).map(|(port, _)| *port);
        let page = rest.by_ref().take(MAX_PORTS).collect();
        Ok((page, rest.next().is_some()))
    }

    /// Adds ports that came from another keeper, and returns whether there were any. A port that is already held
    /// stays as it is.
    pub(super) fn adopt(&self, ports: impl IntoIterator<Item = (PortKey, HeldPort)>) -> bool {
        let mut inner = self.inner.lock();
        let before = inner.held.len();
        for (port, held) in ports {
            if let Entry::Vacant(entry) = inner.held.entry(port) {
                let socket = entry.insert(held).socket().is_some();
                inner.sockets += usize::from(socket);
            }
        }
        inner.held.len() > before
    }

    /// Returns the current role.
    pub(super) fn role(&self) -> KeeperRole {
        self.inner.lock().role
    }

    /// Sends the role to this stream now and at every change. It replaces the previous watcher.
    pub(super) fn watch(&self, id: u64, stream: UnixStream) {
        let mut inner = self.inner.lock();
        inner.watcher = Some((id, stream));
        inner.notify_watcher();
    }

    /// Removes a watcher whose connection ended.
    pub(super) fn unwatch(&self, id: u64) {
        let mut inner = self.inner.lock();
        if inner
            .watcher
            .as_ref()
            .is_some_and(|(watcher, _)| *watcher == id)
        {
            inner.remove_watcher();
        }
    }

    /// Returns whether an enforcer watches this keeper, or did a moment ago.
    pub(super) fn is_attended(&self) -> bool {
        let inner = self.inner.lock();
        inner.watcher.is_some() || inner.unwatched_at.elapsed() < UNATTENDED
    }

    /// Records that this process was asked to end.
    pub(super) fn end(&self) {
        self.inner.lock().ending = true;
    }

    /// Returns whether this process was asked to end.
    pub(super) fn is_ending(&self) -> bool {
        self.inner.lock().ending
    }

    /// Refuses every request from now on, and returns the ports for a handover. Dropping the result
    /// makes the keeper active again, unless it has retired.
    pub(super) fn freeze(&self) -> Result<Frozen<'_>, NotActive> {
        let mut inner = self.inner.lock();
        inner.require_active()?;
        self.set_role(&mut inner, KeeperRole::Frozen);
        let ports = inner
            .held
            .iter()
            .map(|(port, held)| (*port, held.clone()))
            .collect();
        Ok(Frozen {
            table: self,
            ports,
            retired: false,
        })
    }

    /// Makes a retired keeper active, once no other keeper is.
    pub(super) fn resume(&self) {
        self.set_role(&mut self.inner.lock(), KeeperRole::Active);
    }

    /// Retires an active keeper without a handover; false if it was not active.
    pub(super) fn stand_by(&self) -> bool {
        let mut inner = self.inner.lock();
        let active = inner.role == KeeperRole::Active;
        if active {
            self.set_role(&mut inner, KeeperRole::Retired);
        }
        active
    }

    /// Closes the sockets of a keeper that retired at least `after` ago.
    pub(super) fn close_copies(&self, after: Duration) {
        let mut inner = self.inner.lock();
        if inner.retired_at.is_some_and(|at| at.elapsed() >= after) {
            inner.retired_at = None;
            inner.sockets = 0;
            inner.held.clear();
        }
    }

    /// Waits until the keeper is retired.
    pub(super) fn await_retirement(&self) {
        let mut inner = self.inner.lock();
        let serving = |inner: &mut TableState| inner.role != KeeperRole::Retired;
        self.role_changed.wait_while(&mut inner, serving);
    }

    /// Waits until another keeper holds the ports; returns at once if none are held. False after
    /// `within`.
    pub(super) fn await_successor(&self, within: Duration) -> bool {
        let mut inner = self.inner.lock();
        let alone =
            |inner: &mut TableState| inner.role != KeeperRole::Retired && !inner.held.is_empty();
        !self
            .role_changed
            .wait_while_for(&mut inner, alone, within)
            .timed_out()
    }

    /// Waits for a running handover to end; false after `within`.
    pub(super) fn await_handover_end(&self, within: Duration) -> bool {
        let mut inner = self.inner.lock();
        let frozen = |inner: &mut TableState| inner.role == KeeperRole::Frozen;
        !self
            .role_changed
            .wait_while_for(&mut inner, frozen, within)
            .timed_out()
    }

    fn set_role(&self, inner: &mut TableState, role: KeeperRole) {
        inner.role = role;
        inner.retired_at = (role == KeeperRole::Retired).then(Instant::now);
        inner.notify_watcher();
        self.role_changed.notify_all();
    }
}

impl TableState {
    fn require_active(&self) -> Result<(), NotActive> {
        if self.role == KeeperRole::Active {
            Ok(())
        } else {
            Err(NotActive(self.role))
        }
    }

    fn notify_watcher(&mut self) {
        let Some((_, stream)) = &self.watcher else {
            return;
        };
        // a watcher that does not read must not block the keeper: its connection is closed
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = wire::encode(&Reply::Role(self.role))
            .and_then(|frame| Ok(rustix::net::send(stream, &frame, flags)? == frame.len()));
        if !matches!(sent, Ok(true)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            self.remove_watcher();
        }
    }

    fn remove_watcher(&mut self) {
        self.watcher = None;
        self.unwatched_at = Instant::now();
    }
}

/// A running handover, with the ports to hand over.
pub(super) struct Frozen<'a> {
    table: &'a PortTable,
    pub(super) ports: Vec<(PortKey, HeldPort)>,
    retired: bool,
}

impl Frozen<'_> {
    /// Records that another keeper holds the ports. This process's copies of the sockets stay open
    /// until [`PortTable::close_copies`].
    pub(super) fn retire(mut self) {
        self.retired = true;
        self.table
            .set_role(&mut self.table.inner.lock(), KeeperRole::Retired);
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.retired {
            self.table
                .set_role(&mut self.table.inner.lock(), KeeperRole::Active);
        }
    }
}

fn outcome_of(held: &HeldPort) -> HoldOutcome {
    if held.socket().is_some() {
        HoldOutcome::Held
    } else {
        HoldOutcome::HeldWithoutSocket
    }
}

#[cfg(test)]
mod tests;
