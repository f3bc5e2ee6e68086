//! Being somewhere else on the network: the client outside the cluster, or a node.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
pub(crate) use e2e::visit::{at, run_at, run_beside};

/// How long one connection may take to be made, and one answer to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// The protocol of a question to a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Http,
    Tcp,
    Udp,
}

/// Asks a host port from outside the cluster; the first line of the answer, which is a pod's name.
pub(crate) fn ask(cluster: &Cluster, way: Way, address: SocketAddr) -> Result<String> {
    run_at(cluster, "client", move || match way {
        Way::Http => http(address),
        Way::Tcp => tcp(address),
        Way::Udp => udp(address),
    })?
    .with_context(|| format!("ask {address} by {way:?} from outside"))
}

/// Whether a TCP connection from outside is refused at once, as by a port on which no process listens.
pub(crate) fn is_refused(cluster: &Cluster, address: SocketAddr) -> Result<bool> {
    run_at(
        cluster,
        "client",
        move || match TcpStream::connect_timeout(&address, PATIENCE) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
            Err(error) => Err(error).with_context(|| format!("connect to {address}")),
            Ok(_) => Ok(false),
        },
    )?
}

pub(crate) fn tcp(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"who are you?\n")?;
    let mut answer = [0; 256];
    let length = read(&mut stream, &mut answer)?;
    // a program that ended between accept and write: no answer, and so not that of another pod
    ensure!(
        length > 0,
        "{address} closed the connection without an answer"
    );
    Ok(first_line(&answer[..length]))
}

/// A read with a time limit fails with EINTR after the process was stopped (signal(7)).
pub(crate) fn read(stream: &mut TcpStream, into: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(into) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn http(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET / HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (_, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok(first_line(body.as_bytes()))
}

/// Datagrams may be lost: sends again after each time-out.
pub(crate) fn udp(address: SocketAddr) -> Result<String> {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let end = Instant::now() + PATIENCE;
    let mut answer = [0; 256];
    loop {
        let asked = socket
            .send(b"who are you?\n")
            .and_then(|_| socket.recv(&mut answer));
        match asked {
            Ok(length) => return Ok(first_line(&answer[..length])),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => {}
        }
    }
}

fn first_line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}
