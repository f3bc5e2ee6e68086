//! Servers that answer with their name and the address of the client, and clients that ask them.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::lab::patience;
use crate::netns::Netns;

/// How long to wait for an expected answer; a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a server checks whether its test is over.
const SERVER_TICK: Duration = Duration::from_millis(50);

/// Stops its servers when dropped.
pub(crate) struct Server {
    over: Arc<AtomicBool>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Answers each TCP connection and datagram at a port, in both families, with "NAME SENDER". Over
/// TCP, it then echoes lines.
pub(crate) fn serve(netns: &Netns, name: &'static str, port: u16) -> Server {
    serve_at(netns, name, SocketAddr::from(([0; 16], port)))
}

/// Serves at one address, from which datagrams are then answered.
pub(crate) fn serve_at(netns: &Netns, name: &'static str, at: SocketAddr) -> Server {
    let over = Arc::new(AtomicBool::new(false));
    let (tcp, udp) = netns.run(|| {
        (
            TcpListener::bind(at).expect("tcp"),
            UdpSocket::bind(at).expect("udp"),
        )
    });
    SockRef::from(&tcp)
        .set_read_timeout(Some(SERVER_TICK))
        .expect("timeout");
    udp.set_read_timeout(Some(SERVER_TICK)).expect("timeout");
    let tcp_over = Arc::clone(&over);
    thread::spawn(move || {
        while !tcp_over.load(Ordering::Relaxed) {
            if let Ok((stream, peer)) = tcp.accept() {
                let over = Arc::clone(&tcp_over);
                thread::spawn(move || echo(&stream, &greeting(name, peer), &over));
            }
        }
    });
    let udp_over = Arc::clone(&over);
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while !udp_over.load(Ordering::Relaxed) {
            if let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(greeting(name, peer).as_bytes(), peer);
            }
        }
    });
    Server { over }
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

fn echo(stream: &TcpStream, greeting: &str, over: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(SERVER_TICK))?;
    let mut writer = stream;
    writer.write_all(greeting.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !over.load(Ordering::Relaxed) {
        match reader.read_line(&mut line) {
            Ok(0) => break,
            Ok(_) => writer.write_all(std::mem::take(&mut line).as_bytes())?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A TCP connection that has received the first answer.
pub(crate) struct Conversation {
    stream: BufReader<TcpStream>,
    pub(crate) greeting: String,
}

impl Conversation {
    pub(crate) fn open(from: &Netns, to: SocketAddr) -> io::Result<Self> {
        let stream = from.run(|| TcpStream::connect_timeout(&to, patience(PATIENCE)))?;
        stream.set_read_timeout(Some(patience(PATIENCE)))?;
        let mut stream = BufReader::new(stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting)?;
        Ok(Self {
            stream,
            greeting: greeting.trim().to_owned(),
        })
    }

    /// Sends a line and asserts that it comes back.
    pub(crate) fn goes_on(&mut self) {
        self.stream
            .get_mut()
            .write_all(b"still there?\n")
            .expect("write");
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("read");
        assert_eq!(line, "still there?\n");
    }
}

/// Returns the answer to a TCP connection: the server's name and the address that it sees.
pub(crate) fn ask_tcp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    Conversation::open(from, to).map(|conversation| conversation.greeting)
}

/// Asserts that the connection is refused, because no process listens.
pub(crate) fn assert_refused(from: &Netns, to: SocketAddr) {
    match ask_tcp(from, to) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        other => panic!("{to}: expected a refusal, got {other:?}"),
    }
}

/// A UDP client that keeps its port, and therefore its flow.
pub(crate) struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    pub(crate) fn new(from: &Netns, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let socket = from.run(|| {
            let socket = UdpSocket::bind((any, 0)).expect("bind");
            socket.connect(to).expect("connect");
            socket
        });
        Self { socket }
    }

    /// Sends a datagram and returns the answer; `ConnectionRefused` if no process listens.
    pub(crate) fn ask(&self, patience: Duration) -> io::Result<String> {
        self.socket.set_read_timeout(Some(patience))?;
        // an ICMP error of an earlier datagram is reported here, once
        if self.socket.send(b"who?").is_err() {
            self.socket.send(b"who?")?;
        }
        let mut buffer = [0; 64];
        let length = loop {
            match self.socket.recv(&mut buffer) {
                // the kernel does not resume a wait with a time limit after the process was stopped
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                heard => break heard?,
            }
        };
        Ok(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
    }

    /// Asks until the answer begins with the name.
    pub(crate) fn hears(&self, name: &str) -> String {
        let start = Instant::now();
        loop {
            let answer = self.ask(Duration::from_millis(200));
            match answer {
                Ok(answer) if answer.starts_with(name) => return answer,
                other => assert!(
                    start.elapsed() < patience(PATIENCE),
                    "{name} does not answer: {other:?}"
                ),
            }
        }
    }
}

/// Returns the answer to a datagram.
pub(crate) fn ask_udp(from: &Netns, to: SocketAddr) -> io::Result<String> {
    UdpClient::new(from, to).ask(patience(PATIENCE))
}
