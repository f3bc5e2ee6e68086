//! Binds one port, so that no other process can: the bound socket is the reservation.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Once};

use portmapping_shared::{HostPort, PortKey, Protocol};
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

/// A held port. It is held until the last clone of this value is dropped.
#[derive(Clone, Debug)]
pub(super) struct HeldPort(Option<Arc<OwnedFd>>);

impl HeldPort {
    /// Binds the port for both address families. The socket does not listen and does not share its
    /// address (no `SO_REUSEADDR`, no `SO_REUSEPORT`).
    pub(super) fn bind((protocol, port): PortKey) -> io::Result<Self> {
        let kind = match protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
            // container kernels often lack SCTP sockets (EPROTONOSUPPORT)
            Protocol::Sctp => return Ok(Self::without_socket()),
        };
        let socket = match bind_as(Domain::IPV6, kind, port) {
            // booted with ipv6.disable=1
            Err(error) if is_errno(&error, Errno::AFNOSUPPORT) => bind_as(Domain::IPV4, kind, port),
            other => other,
        }?;
        Ok(Self(Some(Arc::new(socket.into()))))
    }

    /// A port that is recorded as held and has no socket.
    pub(super) fn without_socket() -> Self {
        Self(None)
    }

    /// Takes a socket from another keeper. Fails unless it is bound to this port, of this protocol,
    /// and not listening.
    pub(super) fn adopt((protocol, port): PortKey, fd: OwnedFd) -> io::Result<Self> {
        let socket = SockRef::from(&fd);
        let kind = match protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
            Protocol::Sctp => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let bound = socket
            .local_addr()?
            .as_socket()
            .map(|address| address.port());
        if bound != Some(port.get()) || socket.r#type()? != kind || socket.is_listener()? {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self(Some(Arc::new(fd))))
    }

    /// Wraps any descriptor.
    #[cfg(test)]
    pub(super) fn for_tests(fd: OwnedFd) -> Self {
        Self(Some(Arc::new(fd)))
    }

    /// The socket; None for a port held without one.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|fd| fd.as_fd())
    }
}

fn bind_as(domain: Domain, kind: Type, port: HostPort) -> io::Result<Socket> {
    let socket = Socket::new(domain, kind, None)?;
    if domain == Domain::IPV6 {
        // one socket blocks both families; an IPv4 socket would leave [::] to other processes
        socket.set_only_v6(false)?;
    }
    if kind == Type::DGRAM {
        // datagrams are never read: queue as few as possible
        socket.set_recv_buffer_size(0)?;
    }
    let address: SocketAddr = if domain == Domain::IPV6 {
        (Ipv6Addr::UNSPECIFIED, port.get()).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, port.get()).into()
    };
    socket.bind(&address.into())?;
    if kind == Type::DGRAM {
        leave_to_loopback(&socket)?;
    }
    Ok(socket)
}

/// Makes a bound UDP socket receive from device lo only: other processes still cannot bind the
/// port, and clients from outside get ICMP port unreachable instead of no answer. Before the bind,
/// this would hide a socket that another process has bound to another device.
fn leave_to_loopback(socket: &Socket) -> io::Result<()> {
    static REFUSED: Once = Once::new();
    match socket.bind_device(Some(b"lo")) {
        // Linux before 5.7 wants NET_RAW
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            REFUSED.call_once(|| {
                tracing::warn!(
                    %error,
                    "held UDP ports cannot be bound to device lo (Linux before 5.7): they are held \
                     on all devices, and datagrams to a port that is not mapped get no answer"
                );
            });
            Ok(())
        }
        other => other,
    }
}

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that was free a moment ago.
    fn free_port() -> HostPort {
        let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
        HostPort::new(socket.local_addr().unwrap().port()).unwrap()
    }

    #[test]
    fn binds_ipv4_where_ipv6_is_missing() {
        for (protocol, kind) in [(Protocol::Tcp, Type::STREAM), (Protocol::Udp, Type::DGRAM)] {
            let port = free_port();
            let socket = bind_as(Domain::IPV4, kind, port).unwrap();
            assert!(HeldPort::bind((protocol, port)).is_err());
            HeldPort::adopt((protocol, port), socket.into()).unwrap();
        }
    }

    #[test]
    fn udp_hold_receives_from_loopback_only_and_queues_little() {
        let held = HeldPort::bind((Protocol::Udp, free_port())).unwrap();
        let socket = SockRef::from(held.0.as_ref().unwrap());
        // where the name can be read: under qemu-user this getsockopt fails with EINVAL once it is set
        let other = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        other.bind_device(Some(b"lo")).unwrap();
        if other.device().is_ok() {
            assert_eq!(socket.device().unwrap().as_deref(), Some(b"lo".as_slice()));
        }
        assert!(!socket.only_v6().unwrap());
        assert!(socket.recv_buffer_size().unwrap() < 8192);
        assert!(socket.reuse_address().is_ok_and(|reuse| !reuse));
    }
}
