//! Serves the enforcer: one thread per connection, with a limit on connections and on the time of
//! each frame.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::peers::Peers;
use super::wire::{self, Envelope, MAX_PORTS, Reply, Request, VERSION};
use super::{ACCEPT_PAUSE, KeeperError, setup, socket, spawn};

/// Most connections at a time. One more closes the oldest, so that old connections cannot keep a
/// new enforcer out.
const MAX_CONNECTIONS: usize = 16;

type OpenStreams = Arc<Mutex<VecDeque<(u64, UnixStream)>>>;

/// Accepts connections for as long as the process lives.
pub(super) fn serve(listener: &OwnedFd, peers: &Arc<Peers>, instance: u64) {
    let connections = OpenStreams::default();
    for id in 0.. {
        match socket::accept(listener).map(UnixStream::from) {
            Ok(stream) => {
                if let Err(error) = serve_connection(id, stream, &connections, peers, instance) {
                    tracing::warn!(%error, "cannot serve a connection; it is closed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn serve_connection(
    id: u64,
    stream: UnixStream,
    connections: &OpenStreams,
    peers: &Arc<Peers>,
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
    let peers = Arc::clone(peers);
    let serve = {
        let end = end.clone();
        move || {
            if let Err(error) = answer_requests(id, stream, &peers, instance) {
                tracing::debug!(%error, "a connection ended with an error");
            }
            peers.table.unwatch(id);
            end();
        }
    };
    spawn("connection", serve).inspect_err(|_| end())
}

fn answer_requests(
    id: u64,
    mut stream: UnixStream,
    peers: &Peers,
    instance: u64,
) -> io::Result<()> {
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
                peers.table.watch(id, stream.try_clone()?);
                // a watcher sends nothing more; this waits for the end of its connection
                return wire::read::<Envelope>(&mut stream).map(drop);
            }
            Ok(Some(Envelope {
                v: VERSION,
                request,
            })) => answer(peers, request),
            Ok(Some(Envelope { v, .. })) => Reply::Error(format!(
                "version {v} is unknown; this keeper uses version {VERSION}"
            )),
            // after a connection error the write below fails too
            Err(error) => Reply::Error(error.to_string()),
        };
        wire::write(&mut stream, &reply)?;
        if let Reply::Error(message) = reply {
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
}

fn answer(peers: &Peers, request: Request) -> Reply {
    let table = &peers.table;
    let done = match request {
        Request::Hold(ports) | Request::Release(ports) if ports.len() > MAX_PORTS => {
            let count = ports.len();
            Ok(Reply::Error(format!(
                "{count} ports in a request; at most {MAX_PORTS} are allowed"
            )))
        }
        Request::Hold(ports) => table.hold(&ports).map(Reply::Holding),
        Request::Release(ports) => table.release(&ports).map(Reply::Released),
        Request::List { after } => table
            .page(after)
            .map(|(ports, more)| Reply::Held { ports, more }),
        Request::TakeOver => Ok(match peers.take_over() {
            Ok(role) => Reply::Role(role),
            Err(error) => Reply::Error(error.to_string()),
        }),
        Request::Watch => Ok(Reply::Error("watch has no single reply".into())),
    };
    done.unwrap_or(Reply::Retired)
}
