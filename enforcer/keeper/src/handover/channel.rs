//! A connection between two keepers: messages with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketType,
};

use super::super::socket;
use super::{BATCH, MAX_MESSAGE, Message, Received, left};

/// One end of the connection.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Connects to the keeper that listens at `path`. Fails if it runs as another user.
    pub(super) fn connect(path: &Path, deadline: Instant) -> io::Result<Self> {
        let fd = socket::connect(path, SocketType::SEQPACKET, left(deadline))?;
        if !socket::is_own_user(&fd)? {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self(fd))
    }

    /// Accepts the next connection of a keeper of this process's user.
    pub(crate) fn accept(listener: &OwnedFd) -> io::Result<Self> {
        socket::accept(listener).map(Self)
    }

    /// Sends a message and copies of these descriptors.
    pub(super) fn send(
        &self,
        message: &Message,
        fds: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        socket::set_timeout(&self.0, Timeout::Send, left(deadline))?;
        let parts = [IoSlice::new(&json)];
        retry_on_intr(|| {
            rustix::net::sendmsg(&self.0, &parts, &mut ancillary, SendFlags::NOSIGNAL)
        })?;
        Ok(())
    }

    /// Waits for the next message until the deadline; without a deadline, for ever. Returns None at
    /// the end of the connection.
    pub(super) fn recv(&self, deadline: Option<Instant>) -> io::Result<Option<Received>> {
        match deadline {
            Some(deadline) => socket::set_timeout(&self.0, Timeout::Recv, left(deadline))?,
            None => set_socket_timeout(&self.0, Timeout::Recv, None)?,
        }
        let mut json = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut json)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        // the kernel does not restart a timed receive after SIGSTOP and SIGCONT: EINTR
        let got =
            retry_on_intr(|| rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, flags))?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got.bytes == 0 {
            return Ok(None);
        }
        // CTRUNC: the kernel could not install all descriptors and dropped the rest
        if got
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "message or descriptors were truncated",
            ));
        }
        let message = serde_json::from_slice(&json[..got.bytes])?;
        Ok(Some((message, fds)))
    }

    /// Returns whether the other side has not ended. Only for a side that sends nothing any more.
    pub(crate) fn is_open(&self) -> bool {
        let waiting = self.recv(Some(Instant::now()));
        waiting.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Makes every later send of the other side fail. Messages sent before can still be received.
    pub(super) fn stop_receiving(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, Shutdown::Read)?)
    }

    /// Two connected ends.
    #[cfg(test)]
    pub(super) fn pair() -> (Self, Self) {
        use rustix::net::{AddressFamily, SocketFlags, socketpair};
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (a, b) = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
        (Self(a), Self(b))
    }
}
