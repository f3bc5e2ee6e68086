//! Servers, and clients that measure time. Clients run on the first processor and servers on the
//! second, so that a turn does not depend on the scheduler.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portmapping_shared::Protocol;
use socket2::{Domain, Socket, Type};

use super::netns::Netns;

/// A turn ends after this many exchanges, or after [`TURN`].
const EXCHANGES: usize = 2_000;
/// A turn ends after this time, if it has enough exchanges.
const TURN: Duration = Duration::from_millis(250);
const ENOUGH: usize = 60;
/// Exchanges that are not counted, because caches, slabs and the conntrack table fill first.
const WARM_UP: usize = 60;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a server checks whether it must stop.
const TICK: Duration = Duration::from_millis(100);
const MESSAGE: [u8; 32] = [b'x'; 32];

/// Stops its servers when dropped.
#[derive(Debug, Default)]
pub(super) struct Servers(Arc<AtomicBool>);

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Servers {
    /// Accepts connections at an address, and closes them.
    pub(super) fn tcp(&self, netns: &Netns, at: SocketAddrV4) -> Result<()> {
        let listener = bound(netns, Type::STREAM, at)?;
        listener
            .listen(4096)
            .with_context(|| format!("listen at {at}"))?;
        let over = Arc::clone(&self.0);
        thread::spawn(move || {
            pin(1);
            while !over.load(Ordering::Relaxed) {
                // an error is a timeout, or a connection that the client has closed
                drop(listener.accept());
            }
        });
        Ok(())
    }

    /// Sends datagrams back. It binds one address, so that answers come from the address that the
    /// client used.
    pub(super) fn udp(&self, netns: &Netns, at: SocketAddrV4) -> Result<()> {
        let socket = std::net::UdpSocket::from(bound(netns, Type::DGRAM, at)?);
        let over = Arc::clone(&self.0);
        thread::spawn(move || {
            pin(1);
            let mut buffer = [0; 64];
            while !over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(())
    }
}

fn bound(netns: &Netns, kind: Type, at: SocketAddrV4) -> Result<Socket> {
    netns.run(|| {
        let open = || {
            let socket = Socket::new(Domain::IPV4, kind, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&at.into())?;
            socket.set_read_timeout(Some(TICK))?;
            std::io::Result::Ok(socket)
        };
        open().with_context(|| format!("serve at {at}"))
    })
}

/// A client that does not reuse a source port within a short time, because conntrack would treat
/// both uses as the same connection.
#[derive(Debug)]
pub(super) struct Client {
    next_port: u16,
}

impl Client {
    pub(super) fn new() -> Self {
        Self { next_port: 1024 }
    }

    /// Returns the times of one turn in microseconds: of blocking connects, or of datagrams with
    /// their answers.
    pub(super) fn turn(
        &mut self,
        netns: &Netns,
        from: Ipv4Addr,
        to: SocketAddrV4,
        protocol: Protocol,
    ) -> Result<Vec<f64>> {
        netns.run(|| {
            pin(0);
            for _ in 0..WARM_UP {
                self.exchange(from, to, protocol)?;
            }
            let mut times = Vec::with_capacity(EXCHANGES);
            let start = Instant::now();
            while times.len() < EXCHANGES && (times.len() < ENOUGH || start.elapsed() < TURN) {
                let time = self.exchange(from, to, protocol)?;
                times.push(time.as_secs_f64() * 1e6);
            }
            Ok(times)
        })
    }

    fn exchange(
        &mut self,
        from: Ipv4Addr,
        to: SocketAddrV4,
        protocol: Protocol,
    ) -> Result<Duration> {
        let from = SocketAddrV4::new(from, self.next_port);
        self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        let time = match protocol {
            Protocol::Udp => ask(from, to),
            Protocol::Tcp | Protocol::Sctp => connect(from, to),
        };
        time.with_context(|| format!("{protocol} from {from} to {to}"))
    }
}

/// Returns the time of `connect` alone; the connection is then reset.
fn connect(from: SocketAddrV4, to: SocketAddrV4) -> std::io::Result<Duration> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_reuse_address(true)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.bind(&from.into())?;
    let start = Instant::now();
    socket.connect(&to.into())?;
    Ok(start.elapsed())
}

/// Returns the time from the send to the answer.
fn ask(from: SocketAddrV4, to: SocketAddrV4) -> std::io::Result<Duration> {
    let socket = std::net::UdpSocket::bind(from)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 64];
    let start = Instant::now();
    socket.send_to(&MESSAGE, to)?;
    let (length, sender) = socket.recv_from(&mut buffer)?;
    let time = start.elapsed();
    if length == MESSAGE.len() && sender == to.into() {
        return Ok(time);
    }
    Err(std::io::Error::new(
        ErrorKind::InvalidData,
        format!("{length} bytes came from {sender}"),
    ))
}

/// Binds the calling thread to a processor, if the machine has it.
pub(super) fn pin(processor: usize) {
    let mut set = CpuSet::new();
    if set.set(processor).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
