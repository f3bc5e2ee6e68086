//! Unix sockets by path: one that is there answers, and only our own user gets an answer.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::fs::Mode;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections the kernel queues for us; a caller beyond it waits.
const BACKLOG: i32 = 32;

/// A socket file of ours; dropping it removes the file.
#[derive(Debug)]
pub(super) struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at `path` with mode 0600. The file takes its name only once it listens, so whoever
/// finds it refusing connections knows that its owner is gone.
pub(super) fn listen(path: &Path, kind: SocketType) -> io::Result<(OwnedFd, Published)> {
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let unnamed = path.with_file_name(format!(".{name}.tmp"));
    remove_if_there(&unnamed)?;
    let listener = socket(kind)?;
    // before bind: the file must not be open to others even for a moment
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(&unnamed)?)?;
    rustix::net::listen(&listener, BACKLOG)?;
    fs::rename(&unnamed, path)?;
    Ok((listener, Published(path.to_owned())))
}

/// Connects to the socket at `path`; waits at most `within` where its owner does not accept.
pub(super) fn connect(path: &Path, kind: SocketType, within: Duration) -> io::Result<OwnedFd> {
    let fd = socket(kind)?;
    // connect honours the send timeout when the queue of the listener is full
    set_timeout(&fd, Timeout::Send, within)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Accepts the next connection of a process of our own user; others are dropped.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    loop {
        let fd = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
        match is_own_user(&fd) {
            Ok(true) => return Ok(fd),
            Ok(false) => tracing::warn!("dropped a connection of another user"),
            Err(error) => tracing::warn!(%error, "dropped a connection of unknown origin"),
        }
    }
}

/// Whether the process at the other end runs as our user. (Its process id is of no use: it is 0
/// where that process lives in another PID namespace.)
pub(super) fn is_own_user(fd: &impl AsFd) -> io::Result<bool> {
    let uid = getsockopt(&fd.as_fd(), PeerCredentials)?.uid();
    Ok(uid == rustix::process::geteuid().as_raw())
}

/// Bounds the next blocking call; zero would mean no bound at all.
pub(super) fn set_timeout(fd: &impl AsFd, which: Timeout, within: Duration) -> io::Result<()> {
    Ok(set_socket_timeout(
        fd,
        which,
        Some(within.max(Duration::from_millis(1))),
    )?)
}

/// Removes a file that may be gone already.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn socket(kind: SocketType) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
