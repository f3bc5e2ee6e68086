//! Unix sockets by path, for processes of the same user only.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::fs::Mode;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that the kernel queues before `accept`; further callers wait.
const BACKLOG: i32 = 32;

/// The file of a listening socket; dropping this removes the file.
#[derive(Debug)]
pub(super) struct Published(PathBuf);

impl Drop for Published {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens at `path` with mode 0600. The file gets its name only once the socket listens, so a
/// refused connection means that the owner is dead.
pub(super) fn listen(path: &Path, kind: SocketType) -> io::Result<(OwnedFd, Published)> {
    let name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_string_lossy();
    let unnamed = path.with_file_name(format!(".{name}.tmp"));
    remove_if_there(&unnamed)?;
    let listener = socket(kind)?;
    // before bind: the file must never be accessible to other users
    rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(&unnamed)?)?;
    rustix::net::listen(&listener, BACKLOG)?;
    fs::rename(&unnamed, path)?;
    Ok((listener, Published(path.to_owned())))
}

/// Connects to the socket at `path`. Waits at most `within` if its owner does not accept.
pub(super) fn connect(path: &Path, kind: SocketType, within: Duration) -> io::Result<OwnedFd> {
    let fd = socket(kind)?;
    // connect(2) uses the send timeout while the listener's queue is full
    set_timeout(&fd, Timeout::Send, within)?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Accepts the next connection of a process of this process's user; closes all others.
pub(super) fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    loop {
        let fd = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
        match is_own_user(&fd) {
            Ok(true) => return Ok(fd),
            Ok(false) => tracing::warn!("closed a connection of another user"),
            Err(error) => tracing::warn!(%error, "closed a connection whose user is unknown"),
        }
    }
}

/// Returns whether the process at the other end runs as this process's user. Its process id cannot
/// be used: it is 0 for a process in another PID namespace.
pub(super) fn is_own_user(fd: &impl AsFd) -> io::Result<bool> {
    let uid = getsockopt(&fd.as_fd(), PeerCredentials)?.uid();
    Ok(uid == rustix::process::geteuid().as_raw())
}

/// Sets the time limit of the next blocking calls: at least 1 ms, because zero means no limit.
pub(super) fn set_timeout(fd: &impl AsFd, which: Timeout, within: Duration) -> io::Result<()> {
    Ok(set_socket_timeout(
        fd,
        which,
        Some(within.max(Duration::from_millis(1))),
    )?)
}

/// Removes a file; no error if it does not exist.
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
