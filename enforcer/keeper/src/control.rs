//! The enforcer's side door: one thread per connection, every one of them bounded.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::table::Table;
use super::wire::{self, Envelope, MAX_PORTS, Reply, Request, VERSION};
use super::{ACCEPT_PAUSE, KeeperError, setup, socket, spawn};

/// Most connections at a time; one more ends the oldest, so that none is locked out for good.
const MAX_CONNECTIONS: usize = 16;

type Connections = Arc<Mutex<VecDeque<(u64, UnixStream)>>>;

/// Accepts connections for as long as the process lives.
pub(super) fn serve(listener: &OwnedFd, table: &Arc<Table>, instance: u64) {
    let connections = Connections::default();
    for id in 0.. {
        match socket::accept(listener).map(UnixStream::from) {
            Ok(stream) => {
                if let Err(error) = begin(id, stream, &connections, table, instance) {
                    tracing::warn!(%error, "cannot serve a connection");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn begin(
    id: u64,
    stream: UnixStream,
    connections: &Connections,
    table: &Arc<Table>,
    instance: u64,
) -> Result<(), KeeperError> {
    let copy = stream
        .try_clone()
        .map_err(|source| setup("a connection", source))?;
    let mut open = connections.lock();
    open.push_back((id, copy));
    if open.len() > MAX_CONNECTIONS
        && let Some((_, oldest)) = open.pop_front()
    {
        let _ = oldest.shutdown(Shutdown::Both);
    }
    drop(open);
    let end = {
        let connections = Arc::clone(connections);
        move || connections.lock().retain(|(other, _)| *other != id)
    };
    let table = Arc::clone(table);
    let serve = {
        let end = end.clone();
        move || {
            if let Err(error) = converse(id, stream, &table, instance) {
                tracing::debug!(%error, "connection ended");
            }
            table.unwatch(id);
            end();
        }
    };
    spawn("connection", serve).inspect_err(|_| end())
}

fn converse(id: u64, mut stream: UnixStream, table: &Table, instance: u64) -> io::Result<()> {
    wire::write(
        &mut stream,
        &Reply::Hello {
            v: VERSION,
            instance,
        },
    )?;
    loop {
        let reply = match wire::read(&mut stream) {
            Ok(None) => return Ok(()),
            Ok(Some(Envelope {
                v: VERSION,
                request: Request::Watch,
            })) => {
                table.watch(id, stream.try_clone()?);
                // a watcher has no more to say; this waits for the end of its connection
                return wire::read::<Envelope>(&mut stream).map(drop);
            }
            Ok(Some(Envelope {
                v: VERSION,
                request,
            })) => answer(table, request),
            Ok(Some(Envelope { v, .. })) => Reply::Error(format!(
                "version {v} is unknown; this keeper speaks {VERSION}"
            )),
            // an error of the connection itself cannot be answered, and the write fails as well
            Err(error) => Reply::Error(error.to_string()),
        };
        wire::write(&mut stream, &reply)?;
        if let Reply::Error(message) = reply {
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
}

fn answer(table: &Table, request: Request) -> Reply {
    let done = match request {
        Request::Hold(ports) | Request::Release(ports) if ports.len() > MAX_PORTS => {
            let count = ports.len();
            Ok(Reply::Error(format!(
                "{count} ports in a request; at most {MAX_PORTS}"
            )))
        }
        Request::Hold(ports) => table.hold(&ports).map(Reply::Holding),
        Request::Release(ports) => table.release(&ports).map(Reply::Released),
        Request::List { after } => table
            .page(after)
            .map(|(ports, more)| Reply::Held { ports, more }),
        Request::Watch => Ok(Reply::Error("watch is no request to answer".into())),
    };
    done.unwrap_or(Reply::Retired)
}
