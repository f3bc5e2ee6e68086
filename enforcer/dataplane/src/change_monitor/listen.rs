//! Receives the kernel's announcements of new generations, and requests the current generation
//! (`linux/netfilter/nf_tables.h`).

use std::io;
use std::sync::Weak;
use std::thread;
use std::time::Duration;

use socket2::{SockFilter, SockRef};

use super::{ChangeMonitor, Shared};
use crate::netlink::{Header, Message, NetlinkError, Options, Socket};

/// `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` of `NFNL_SUBSYS_NFTABLES`.
const NEW: u16 = 0x0a0f;
const GET: u16 = 0x0a10;
/// `NFTA_GEN_ID`.
const ID: u16 = 1;
/// `NFNLGRP_NFTABLES`, the seventh group.
const GROUP: u32 = 1 << 6;
/// How often the listener checks whether the monitor still exists.
const TICK: Duration = Duration::from_millis(500);
/// Offset of the message type in `nlmsghdr`.
const KIND_OFFSET: u32 = 4;
/// Classic BPF (`linux/bpf_common.h`): load two bytes, compare, return how much to keep.
const LOAD_HALF: u16 = 0x28;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

impl ChangeMonitor {
    /// Starts a thread that listens in the network namespace of the caller. It ends after this
    /// value and all its clones are dropped.
    pub fn listen(&self) -> Result<(), NetlinkError> {
        let socket = Socket::open(Options {
            deadline: TICK,
            groups: GROUP,
            ..Options::default()
        })?;
        let filter = |error: io::Error| NetlinkError::Open(error);
        SockRef::from(&socket)
            .attach_filter(&only_generations())
            .map_err(filter)?;
        let shared = std::sync::Arc::downgrade(&self.0);
        thread::Builder::new()
            .name("generations".to_owned())
            .spawn(move || listen(socket, &shared))
            .map_err(filter)?;
        Ok(())
    }
}

/// Builds a filter that passes only announcements of generations. The filter loads values in
/// network byte order.
fn only_generations() -> [SockFilter; 4] {
    let kind = u16::from_be_bytes(NEW.to_ne_bytes());
    [
        SockFilter::new(LOAD_HALF, 0, 0, KIND_OFFSET),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, kind.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

fn listen(mut socket: Socket, shared: &Weak<Shared>) {
    loop {
        let mut heard = Vec::new();
        let outcome = socket.hear(|message| {
            heard.extend(generation(message).map(|generation| (generation, message.port)));
        });
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let monitor = ChangeMonitor(shared);
        for (generation, port) in heard {
            monitor.heard(generation, port);
        }
        match outcome {
            Ok(()) | Err(NetlinkError::Deadline(_)) => {}
            Err(error) => {
                monitor.missed();
                if !matches!(error, NetlinkError::Lost) {
                    tracing::warn!(%error, "cannot receive announcements of changed rules; trying again");
                    // a lasting error must not make this loop use a whole core
                    thread::sleep(TICK);
                }
            }
        }
    }
}

fn generation(message: &Message<'_>) -> Option<u32> {
    let id = (message.kind == NEW).then(|| message.attributes().find(ID));
    id??.be32()
}

/// Requests the current generation from the kernel.
#[derive(Debug, Default)]
pub struct GenerationSocket(Option<Socket>);

impl GenerationSocket {
    /// Returns the current generation; None if the kernel does not tell it. The next call asks
    /// again.
    pub fn current(&mut self) -> Option<u32> {
        let asked = self.ask();
        if let Err(error) = &asked {
            tracing::debug!(%error, "the generation of the packet filter is not known");
        }
        asked.ok().flatten()
    }

    fn ask(&mut self) -> Result<Option<u32>, NetlinkError> {
        current_generation(match &mut self.0 {
            Some(socket) => socket,
            none => none.insert(Socket::open(Options::default())?),
        })
    }
}

/// Requests the current generation; None if the kernel does not tell it.
pub(crate) fn current_generation(socket: &mut Socket) -> Result<Option<u32>, NetlinkError> {
    let header = Header {
        kind: GET,
        ..Header::default()
    };
    let mut current = None;
    socket.request(
        header,
        |_| {},
        |answer| current = generation(answer).or(current),
    )?;
    Ok(current)
}
