//! Which ports are held, and whether this keeper still answers for them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::mem;
use std::ops::Bound;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use portmapping_shared::Protocol;
use rustix::net::SendFlags;

use super::bind::HeldPort;
use super::wire::{self, Duty, Errno, MAX_PORTS, Outcome, Port, Reply};

/// A request came while the keeper was not [`Duty::Active`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OffDuty(pub(super) Duty);

/// The held ports, shared by all threads.
pub(super) struct Table {
    inner: Mutex<Inner>,
    duty_changed: Condvar,
    bind: fn(Port) -> io::Result<HeldPort>,
    /// Most sockets that fit into the limit of open files.
    pub(super) room: usize,
}

struct Inner {
    held: BTreeMap<Port, HeldPort>,
    sockets: usize,
    duty: Duty,
    watcher: Option<(u64, UnixStream)>,
}

impl Table {
    /// An empty table that binds with `bind`, up to `room` sockets.
    pub(super) fn new(room: usize, bind: fn(Port) -> io::Result<HeldPort>) -> Self {
        let (held, duty) = (BTreeMap::new(), Duty::Active);
        let inner = Mutex::new(Inner {
            held,
            sockets: 0,
            duty,
            watcher: None,
        });
        Self {
            inner,
            duty_changed: Condvar::new(),
            bind,
            room,
        }
    }

    /// Holds each port or says why not. Asking again changes nothing.
    pub(super) fn hold(&self, ports: &[Port]) -> Result<Vec<Outcome>, OffDuty> {
        let mut inner = self.inner.lock();
        inner.on_duty()?;
        Ok(ports
            .iter()
            .map(|port| self.hold_one(&mut inner, *port))
            .collect())
    }

    fn hold_one(&self, inner: &mut Inner, port: Port) -> Outcome {
        let full = port.0 != Protocol::Sctp && inner.sockets >= self.room;
        let held = match inner.held.entry(port) {
            Entry::Occupied(entry) => return outcome(entry.get()),
            // said before the kernel does, so that descriptors for connections are left
            Entry::Vacant(_) if full => {
                return Outcome::Refused(Errno(rustix::io::Errno::MFILE.raw_os_error()));
            }
            Entry::Vacant(entry) => match (self.bind)(port) {
                Ok(held) => entry.insert(held),
                Err(error) => {
                    let unknown = rustix::io::Errno::IO.raw_os_error();
                    return Outcome::Refused(Errno(error.raw_os_error().unwrap_or(unknown)));
                }
            },
        };
        inner.sockets += usize::from(held.socket().is_some());
        outcome(held)
    }

    /// Lets go of the ports; answers how many were held.
    pub(super) fn release(&self, ports: &[Port]) -> Result<usize, OffDuty> {
        let mut inner = self.inner.lock();
        inner.on_duty()?;
        let mut released = 0;
        for port in ports {
            if let Some(held) = inner.held.remove(port) {
                inner.sockets -= usize::from(held.socket().is_some());
                released += 1;
            }
        }
        Ok(released)
    }

    /// The next [`MAX_PORTS`] held ports above `after`, and whether there are more.
    pub(super) fn page(&self, after: Option<Port>) -> Result<(Vec<Port>, bool), OffDuty> {
        let inner = self.inner.lock();
        inner.on_duty()?;
        let above = (
            after.map_or(Bound::Unbounded, Bound::Excluded),
            Bound::Unbounded,
        );
        let mut rest = inner.held.range(above).map(|(port, _)| *port);
        let page = rest.by_ref().take(MAX_PORTS).collect();
        Ok((page, rest.next().is_some()))
    }

    /// Adds ports that came from another keeper; answers how many are held now.
    pub(super) fn adopt(&self, ports: impl IntoIterator<Item = (Port, HeldPort)>) -> usize {
        let mut inner = self.inner.lock();
        for (port, held) in ports {
            if let Entry::Vacant(entry) = inner.held.entry(port) {
                let socket = entry.insert(held).socket().is_some();
                inner.sockets += usize::from(socket);
            }
        }
        inner.held.len()
    }

    /// The keeper's duty now.
    pub(super) fn duty(&self) -> Duty {
        self.inner.lock().duty
    }

    /// Tells this stream the duty from now on, instead of the watcher before.
    pub(super) fn watch(&self, id: u64, stream: UnixStream) {
        let mut inner = self.inner.lock();
        inner.watcher = Some((id, stream));
        inner.tell();
    }

    /// Forgets a watcher whose connection ended.
    pub(super) fn unwatch(&self, id: u64) {
        let mut inner = self.inner.lock();
        if inner
            .watcher
            .as_ref()
            .is_some_and(|(watcher, _)| *watcher == id)
        {
            inner.watcher = None;
        }
    }

    /// Stops every change and lends the ports out for a handover. Dropping what this returns
    /// thaws the keeper, unless it retired.
    pub(super) fn freeze(&self) -> Result<Frozen<'_>, OffDuty> {
        let mut inner = self.inner.lock();
        inner.on_duty()?;
        self.turn(&mut inner, Duty::Frozen);
        let ports = inner
            .held
            .iter()
            .map(|(port, held)| (*port, held.clone()))
            .collect();
        Ok(Frozen {
            table: self,
            ports,
            gone: false,
        })
    }

    /// Back from retirement, once no other keeper answers for the ports.
    pub(super) fn resume(&self) {
        self.turn(&mut self.inner.lock(), Duty::Active);
    }

    /// Waits until another keeper answers for the ports, where there are any; false where none came in
    /// time.
    pub(super) fn await_successor(&self, within: Duration) -> bool {
        let mut inner = self.inner.lock();
        let alone = |inner: &mut Inner| inner.duty != Duty::Retired && !inner.held.is_empty();
        !self
            .duty_changed
            .wait_while_for(&mut inner, alone, within)
            .timed_out()
    }

    /// Waits for a handover under way to end; false where it did not in time.
    pub(super) fn settle(&self, within: Duration) -> bool {
        let mut inner = self.inner.lock();
        let frozen = |inner: &mut Inner| inner.duty == Duty::Frozen;
        !self
            .duty_changed
            .wait_while_for(&mut inner, frozen, within)
            .timed_out()
    }

    fn turn(&self, inner: &mut Inner, duty: Duty) {
        inner.duty = duty;
        inner.tell();
        self.duty_changed.notify_all();
    }
}

impl Inner {
    fn on_duty(&self) -> Result<(), OffDuty> {
        if self.duty == Duty::Active {
            Ok(())
        } else {
            Err(OffDuty(self.duty))
        }
    }

    fn tell(&mut self) {
        let Some((_, stream)) = &self.watcher else {
            return;
        };
        // a watcher that does not read must not stop the keeper: it loses the watch instead
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = wire::encode(&Reply::Duty(self.duty))
            .and_then(|frame| Ok(rustix::net::send(stream, &frame, flags)? == frame.len()));
        if !matches!(sent, Ok(true)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            self.watcher = None;
        }
    }
}

/// A keeper in the middle of a handover, with its ports.
pub(super) struct Frozen<'a> {
    table: &'a Table,
    pub(super) ports: Vec<(Port, HeldPort)>,
    gone: bool,
}

impl Frozen<'_> {
    /// From here on another keeper answers for the ports. They stay bound here as well until
    /// [`Frozen::let_go`].
    pub(super) fn retire(&self) {
        self.table.turn(&mut self.table.inner.lock(), Duty::Retired);
    }

    /// Closes this process's copies of the sockets; the keeper stays retired.
    pub(super) fn let_go(mut self) {
        let mut inner = self.table.inner.lock();
        inner.sockets = 0;
        let held = mem::take(&mut inner.held);
        drop(inner);
        drop(held);
        self.gone = true;
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.gone {
            self.table.turn(&mut self.table.inner.lock(), Duty::Active);
        }
    }
}

fn outcome(held: &HeldPort) -> Outcome {
    if held.socket().is_some() {
        Outcome::Held
    } else {
        Outcome::HeldWithoutSocket
    }
}

#[cfg(test)]
mod tests;
