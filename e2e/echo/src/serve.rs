//! Listeners and their answers. Threads are bounded by [`MAX_CONNECTIONS`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::Args;

/// Connections served at a time; one more waits in the listen queue until one ends.
const MAX_CONNECTIONS: usize = 512;
/// How long an idle client stays connected.
const PATIENCE: Duration = Duration::from_secs(10);
const TALK_PATIENCE: Duration = Duration::from_mins(2);
const STREAM_INTERVAL: Duration = Duration::from_millis(10);
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_LINE_BYTES: usize = 1024;

type Answer = fn(TcpStream, &str) -> io::Result<()>;

/// Opens every listener, then serves each from a thread of its own.
pub(crate) fn start(args: &Args) -> Result<(), String> {
    let name: Arc<str> = format!("{}\n", identity()).into();
    let permits = Arc::new(Permits::default());
    let groups = [
        (&args.http, http as Answer),
        (&args.tcp, tcp),
        (&args.talk, talk),
        (&args.whom, whom),
        (&args.stream, stream),
    ];
    for (ports, answer) in groups {
        for &port in ports {
            let listener = bind(port, TcpListener::bind).map_err(|e| cannot("tcp", port, &e))?;
            let (name, permits) = (Arc::clone(&name), Arc::clone(&permits));
            spawn(move || accept(&listener, answer, &name, &permits))
                .map_err(|e| cannot("tcp", port, &e))?;
        }
    }
    let plain = args.udp.iter().map(|port| (*port, false));
    for (port, with_address) in plain.chain(args.whom.iter().map(|port| (*port, true))) {
        let socket = bind(port, UdpSocket::bind).map_err(|e| cannot("udp", port, &e))?;
        let name = Arc::clone(&name);
        spawn(move || udp(&socket, &name, with_address)).map_err(|e| cannot("udp", port, &e))?;
    }
    Ok(())
}

fn cannot(protocol: &str, port: u16, error: &io::Error) -> String {
    format!("cannot serve {protocol} port {port}: {error}")
}

/// The pod's name, and its uid if the manifest provides it: a later pod may have the same name.
fn identity() -> String {
    match std::env::var("POD_UID") {
        Ok(uid) if !uid.is_empty() => format!("{} {uid}", pod_name()),
        _ => pod_name(),
    }
}

pub(crate) fn pod_name() -> String {
    let from_file = || std::fs::read_to_string("/proc/sys/kernel/hostname");
    match std::env::var("POD_NAME") {
        Ok(name) if !name.is_empty() => name,
        _ => from_file().map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned()),
    }
}

/// `[::]` serves both families. Without IPv6 in the kernel only IPv4 is served.
fn bind<T>(port: u16, bind: fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .stack_size(128 * 1024)
        .spawn(body)
        .map(drop)
}

fn accept(listener: &TcpListener, answer: Answer, name: &Arc<str>, permits: &Arc<Permits>) {
    loop {
        let permit = Permits::take(permits);
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) => {
                // No descriptor is free, or the client has gone already. The server goes on.
                eprintln!("accept: {error}");
                thread::sleep(STREAM_INTERVAL);
                continue;
            }
        };
        let name = Arc::clone(name);
        let served = spawn(move || {
            let _permit = permit;
            // A client that closes early is no error of the server.
            let _ = connection
                .set_nodelay(true)
                .and_then(|()| answer(connection, &name));
        });
        if let Err(error) = served {
            eprintln!("cannot start a thread: {error}");
        }
    }
}

fn http(mut connection: TcpStream, name: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = connection.read(&mut buffer)?;
        if count == 0 || head.len() > MAX_HEAD_BYTES {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
    }
    let body = if head.starts_with(b"HEAD ") { "" } else { name };
    let length = name.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    connection.write_all(answer.as_bytes())?;
    finish(connection)
}

fn tcp(mut connection: TcpStream, name: &str) -> io::Result<()> {
    connection.write_all(name.as_bytes())?;
    finish(connection)
}

/// The name, and the client's address as this pod sees it.
fn whom(mut connection: TcpStream, name: &str) -> io::Result<()> {
    let peer = connection.peer_addr()?.ip().to_canonical();
    connection.write_all(format!("{} {peer}\n", name.trim_end()).as_bytes())?;
    finish(connection)
}

/// Answers each line with the name and the line, until the client closes the connection.
fn talk(connection: TcpStream, name: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(TALK_PATIENCE))?;
    let mut writer = connection.try_clone()?;
    let mut reader = BufReader::new(connection);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
        if (&mut reader).take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let answer = [name.trim_end().as_bytes(), b" ", &line].concat();
        writer.write_all(&answer)?;
    }
}

/// Reads what the client still sends: closing with unread bytes resets the connection, and
/// the answer could be lost.
fn finish(mut connection: TcpStream) -> io::Result<()> {
    connection.shutdown(Shutdown::Write)?;
    connection.set_read_timeout(Some(Duration::from_secs(1)))?;
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 4096];
    while Instant::now() < end && connection.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Every 10 ms a line with the number of bytes sent before it, until the peer closes.
fn stream(mut connection: TcpStream, _name: &str) -> io::Result<()> {
    let mut sent = 0_u64;
    loop {
        let line = format!("{sent}\n");
        connection.write_all(line.as_bytes())?;
        sent += line.len() as u64;
        thread::sleep(STREAM_INTERVAL);
    }
}

/// The name, and the client's address if `with_address`.
fn udp(socket: &UdpSocket, name: &str, with_address: bool) {
    let mut buffer = [0; 2048];
    loop {
        // An error here is an ICMP answer to an earlier datagram. The next datagram may succeed.
        if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let answer = if with_address {
                format!("{} {}\n", name.trim_end(), peer.ip().to_canonical())
            } else {
                name.to_owned()
            };
            let _ = socket.send_to(answer.as_bytes(), peer);
        }
    }
}

/// A counting semaphore: std has none.
#[derive(Default)]
struct Permits {
    taken: Mutex<usize>,
    freed: Condvar,
}

struct Permit(Arc<Permits>);

impl Permits {
    fn take(permits: &Arc<Self>) -> Permit {
        let taken = permits.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = permits
            .freed
            .wait_while(taken, |taken| *taken >= MAX_CONNECTIONS)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += 1;
        Permit(Arc::clone(permits))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_one();
    }
}
