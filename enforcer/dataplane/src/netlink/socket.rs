//! A socket to netfilter or rtnetlink: requests, dumps, batches and subscriptions, each with a
//! deadline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::SetSockOpt as _;
use nix::{setsockopt_impl, sockopt_impl};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_socket_timeout,
};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, getsockname,
    recvfrom, sendto, socket_with,
};

use super::batch::Batch;
use super::error::{NetlinkError, RefusedMessage, refusal};
use super::wire::{Encoder, Header, Message, Messages, flags};

sockopt_impl!(
    /// Error messages contain only the header of the refused message.
    CapAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_CAP_ACK,
    bool
);
sockopt_impl!(
    /// Error messages say which attribute they are about.
    ExtAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_EXT_ACK,
    bool
);

/// An error or an acknowledgement (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
/// The end of a dump (linux/netlink.h).
const NLMSG_DONE: u16 = 3;
/// Size of the buffer for one datagram. The kernel fills at most 32 KiB; but an error without
/// `NETLINK_CAP_ACK` contains the whole refused message.
const DATAGRAM_BYTES: usize = 256 * 1024;
/// Bytes of send buffer that a batch needs in addition to its own length.
const SEND_SLACK: usize = 4096;

/// How a socket is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest time one call may take; the kernel answers within milliseconds.
    pub deadline: Duration,
    /// Size of the receive buffer in bytes.
    pub receive_buffer: usize,
    /// Multicast groups to join, as bits: group N is bit N - 1.
    pub groups: u32,
    /// Netfilter, or None for interfaces and addresses (rtnetlink).
    pub protocol: Option<Protocol>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            receive_buffer: 1024 * 1024,
            groups: 0,
            protocol: Some(NETFILTER),
        }
    }
}

/// A netlink socket of the network namespace in which it is opened.
#[derive(Debug)]
pub struct Socket {
    options: Options,
    fd: OwnedFd,
    port: u32,
    /// Size of the send buffer, which limits the length of a message.
    send_buffer: usize,
    sequence: u32,
    buffer: Box<[u8]>,
    /// Length of the last datagram in the buffer.
    filled: usize,
    /// Whether an answer was lost or may still arrive. The socket must then be replaced by a new
    /// one, which does not receive that answer.
    broken: bool,
}

impl Socket {
    /// Opens a socket.
    pub fn open(options: Options) -> Result<Self, NetlinkError> {
        let (fd, port) = connect(options).map_err(|errno| NetlinkError::Open(errno.into()))?;
        Ok(Self {
            options,
            fd,
            port,
            send_buffer: 0,
            sequence: 1,
            buffer: vec![0; DATAGRAM_BYTES].into_boxed_slice(),
            filled: 0,
            broken: false,
        })
    }

    /// Returns the netlink port of the socket. Announcements of its own changes carry this port.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Opens the socket again if an answer was lost or may still arrive. Every call does this
    /// first.
    pub fn renew(&mut self) -> Result<(), NetlinkError> {
        if self.broken {
            let reopened = connect(self.options).map_err(|e| NetlinkError::Open(e.into()))?;
            (self.fd, self.port) = reopened;
            (self.send_buffer, self.broken) = (0, false);
        }
        Ok(())
    }

    /// Sends one message and waits for the kernel's acknowledgement. Passes other answers to
    /// `answer`.
    pub fn request(
        &mut self,
        header: Header,
        body: impl FnOnce(&mut Encoder),
        mut answer: impl FnMut(&Message<'_>),
    ) -> Result<(), NetlinkError> {
        let first = self.send_one(header, flags::REQUEST | flags::ACK, body)?;
        self.converse(|message| match message.kind {
            _ if message.sequence != first => Ok(None),
            NLMSG_ERROR => match refusal(message, first) {
                None => Ok(Some(())),
                Some(refusal) => Err(NetlinkError::Refused(vec![refusal])),
            },
            _ => {
                answer(message);
                Ok(None)
            }
        })
    }

    /// Requests all objects of one kind.
    pub fn dump(
        &mut self,
        header: Header,
        body: impl FnOnce(&mut Encoder),
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), NetlinkError> {
        let first = self.send_one(header, flags::REQUEST | flags::DUMP, body)?;
        let mut interrupted = false;
        self.converse(|message| {
            if message.sequence != first {
                return Ok(None);
            }
            interrupted |= message.flags & flags::DUMP_INTR != 0;
            match message.kind {
                // the end carries an error number of its own
                NLMSG_ERROR | NLMSG_DONE => match refusal(message, first) {
                    None => Ok(Some(())),
                    Some(refusal) => Err(NetlinkError::Refused(vec![refusal])),
                },
                _ => {
                    each(message);
                    Ok(None)
                }
            }
        })?;
        if interrupted {
            return Err(NetlinkError::Interrupted);
        }
        Ok(())
    }

    /// Applies a transaction.
    ///
    /// It succeeds if its last change is acknowledged and none is refused. The acknowledgement
    /// alone is not enough: it also comes if an earlier change fails and all are rolled back.
    pub fn commit(&mut self, batch: &mut Batch) -> Result<(), NetlinkError> {
        self.transact(batch, true)
    }

    /// Lets the kernel check a transaction without applying it.
    pub fn rehearse(&mut self, batch: &mut Batch) -> Result<(), NetlinkError> {
        self.transact(batch, false)
    }

    fn transact(&mut self, batch: &mut Batch, end: bool) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        let encoder = batch.seal(end);
        let first = self.send(encoder)?;
        let last = batch.messages() - if end { 2 } else { 1 };
        let mut acknowledged = false;
        let mut refusals: Vec<RefusedMessage> = Vec::new();
        let begun = Instant::now();
        loop {
            // all answers are queued when the send returns, so only the first needs a wait
            let waiting = !acknowledged && refusals.is_empty();
            if !self.receive(begun, waiting)? {
                break;
            }
            for message in Messages::new(self.buffer.get(..self.filled).unwrap_or_default()) {
                let Ok(message) = message else {
                    self.broken = true;
                    return Err(NetlinkError::Malformed);
                };
                let index = message.sequence.wrapping_sub(first) as usize;
                if message.kind != NLMSG_ERROR || index >= batch.messages() {
                    continue;
                }
                match refusal(&message, first) {
                    Some(refusal) => refusals.push(refusal),
                    None => acknowledged |= index == last,
                }
            }
        }
        let stale = |refusal: &RefusedMessage| refusal.message == 0 && refusal.errno == RESTART;
        if refusals.iter().any(stale) {
            Err(NetlinkError::StaleGeneration)
        } else if refusals.is_empty() {
            Ok(())
        } else {
            Err(NetlinkError::Refused(refusals))
        }
    }

    /// Waits for the next datagram of a subscription and passes its messages to `each`. After
    /// [`NetlinkError::Lost`], messages are missing, and the subscription continues.
    pub fn hear(&mut self, mut each: impl FnMut(&Message<'_>)) -> Result<(), NetlinkError> {
        let heard = self.receive(Instant::now(), true);
        self.broken = false;
        heard?;
        for message in Messages::new(self.buffer.get(..self.filled).unwrap_or_default()) {
            each(&message.map_err(|_| NetlinkError::Malformed)?);
        }
        Ok(())
    }

    fn send_one(
        &mut self,
        mut header: Header,
        flags: u16,
        body: impl FnOnce(&mut Encoder),
    ) -> Result<u32, NetlinkError> {
        header.flags |= flags;
        let mut encoder = Encoder::default();
        encoder.message(header, body);
        self.send(&mut encoder)
    }

    /// Sends the messages. Returns the sequence number of the first.
    fn send(&mut self, encoder: &mut Encoder) -> Result<u32, NetlinkError> {
        if encoder.is_oversized() {
            return Err(NetlinkError::Oversized);
        }
        self.renew()?;
        let first = self.sequence;
        self.sequence = encoder.number(first);
        let bytes = encoder.as_bytes();
        self.make_room(bytes.len());
        let kernel = SocketAddrNetlink::new(0, 0);
        match sendto(&self.fd, bytes, SendFlags::empty(), &kernel) {
            Ok(_) => Ok(first),
            Err(Errno::MSGSIZE) => Err(NetlinkError::TooLarge { bytes: bytes.len() }),
            Err(errno) => Err(NetlinkError::Send(errno.into())),
        }
    }

    /// Enlarges the send buffer as far as this process may, because a batch is sent as a whole.
    fn make_room(&mut self, bytes: usize) {
        let needed = bytes.saturating_add(SEND_SLACK);
        if needed > self.send_buffer {
            // if a failure matters, the send returns EMSGSIZE
            if set_socket_send_buffer_size_force(&self.fd, needed)
                .or_else(|_| set_socket_send_buffer_size(&self.fd, needed))
                .is_ok()
            {
                self.send_buffer = needed;
            }
        }
    }

    /// Passes messages on until one of them ends the exchange.
    fn converse(
        &mut self,
        mut each: impl FnMut(&Message<'_>) -> Result<Option<()>, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let begun = Instant::now();
        loop {
            self.receive(begun, true)?;
            for message in Messages::new(self.buffer.get(..self.filled).unwrap_or_default()) {
                let Ok(message) = message else {
                    self.broken = true;
                    return Err(NetlinkError::Malformed);
                };
                if let Some(()) = each(&message)? {
                    return Ok(());
                }
            }
        }
    }

    /// Receives one datagram of the kernel into the buffer. Returns false if there is none and
    /// `wait` is false.
    fn receive(&mut self, begun: Instant, wait: bool) -> Result<bool, NetlinkError> {
        let mut flags = RecvFlags::TRUNC;
        flags.set(RecvFlags::DONTWAIT, !wait);
        let deadline = self.options.deadline;
        self.filled = 0;
        while begun.elapsed() <= deadline {
            let failure = match recvfrom(&self.fd, &mut self.buffer[..], flags) {
                Ok((length, full, sender)) => {
                    let sender = sender.and_then(|any| SocketAddrNetlink::try_from(any).ok());
                    // other processes can write to this socket as well
                    if sender.is_none_or(|sender| sender.pid() != 0) {
                        continue;
                    }
                    if full <= length {
                        self.filled = length;
                        return Ok(true);
                    }
                    NetlinkError::Malformed
                }
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) if !wait => return Ok(false),
                Err(Errno::AGAIN) => break,
                Err(Errno::NOBUFS) => NetlinkError::Lost,
                Err(errno) => NetlinkError::Receive(errno.into()),
            };
            self.broken = true;
            return Err(failure);
        }
        self.broken = true;
        Err(NetlinkError::Deadline(deadline))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `ERESTART`: the generation of a batch is no longer the current one.
const RESTART: Errno = Errno::from_raw_os_error(85);

fn connect(options: Options) -> Result<(OwnedFd, u32), Errno> {
    let fd = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        options.protocol,
    )?;
    // needs NET_ADMIN in the initial user namespace; the size without force is limited
    set_socket_recv_buffer_size_force(&fd, options.receive_buffer)
        .or_else(|_| set_socket_recv_buffer_size(&fd, options.receive_buffer))?;
    set_socket_timeout(&fd, Timeout::Recv, Some(options.deadline))?;
    let option = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    CapAck.set(&fd, &true).map_err(option)?;
    ExtAck.set(&fd, &true).map_err(option)?;
    bind(&fd, &SocketAddrNetlink::new(0, options.groups))?;
    let port = SocketAddrNetlink::try_from(getsockname(&fd)?)?.pid();
    Ok((fd, port))
}
