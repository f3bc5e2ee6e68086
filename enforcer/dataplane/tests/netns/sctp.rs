//! SCTP is translated in both directions: an association where the kernel has SCTP sockets. Where it
//! has none, the tests exchange packets over raw sockets: the client's INIT, the pod's INIT ACK (RFC
//! 9260, 3.3.2 and 3.3.3). A kernel that has them would answer those packets itself.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use portmapping_dataplane::Settings;
use portmapping_shared::Protocol::{Sctp, Tcp};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Backend, CLIENT, Lab, NODE, POD1, POD2, ip, map, patience, range, settings_for};
use crate::netns::Netns;

const SCTP: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const PATIENCE: Duration = Duration::from_secs(5);

crate::for_each_backend!(
    handshake_is_translated_both_ways,
    moved_port_leads_elsewhere,
    everything_is_masqueraded,
);

struct Raw(Socket);

/// A received SCTP packet with one chunk.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    from: Ipv4Addr,
    source: u16,
    destination: u16,
    chunk: u8,
    intact: bool,
}

impl Raw {
    fn open(netns: &Netns) -> Self {
        let protocol = Some(Protocol::from(SCTP));
        let socket = netns
            .run(|| Socket::new(Domain::IPV4, Type::RAW, protocol))
            .expect("raw socket");
        socket
            .set_read_timeout(Some(patience(PATIENCE)))
            .expect("timeout");
        Self(socket)
    }

    fn send(&self, to: &str, source: u16, destination: u16, tag: u32, chunk: u8) {
        let mut packet = Vec::new();
        packet.extend(source.to_be_bytes());
        packet.extend(destination.to_be_bytes());
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([chunk, 0, 0, 20]);
        packet.extend(0x1234_u32.to_be_bytes());
        packet.extend(65535_u32.to_be_bytes());
        packet.extend([0, 10, 0, 10]);
        packet.extend(77_u32.to_be_bytes());
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        let to = SocketAddr::new(ip(to), 0);
        self.0.send_to(&packet, &to.into()).expect("send");
    }

    fn receive(&self) -> Packet {
        let mut buffer = [0; 2000];
        let length = loop {
            match (&self.0).read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read.expect("a packet"),
            }
        };
        let packet = &buffer[..length];
        let header = usize::from(packet[0] & 15) * 4;
        let from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
        let sctp = &packet[header..];
        let mut summed = sctp.to_vec();
        summed[8..12].fill(0);
        let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
        Packet {
            from,
            source: port(0),
            destination: port(2),
            chunk: sctp[12],
            intact: sctp[8..12] == crc32c(&summed).to_le_bytes(),
        }
    }
}

fn v4(text: &str) -> Ipv4Addr {
    match ip(text) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip}"),
    }
}

/// Returns the checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum))
    })
}

/// Returns an SCTP socket at a port of a namespace.
fn socket(netns: &Netns, port: u16) -> std::io::Result<Socket> {
    let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    netns.run(|| {
        // loads the module where it is not loaded
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::from(SCTP)))?;
        let limit = Some(patience(PATIENCE));
        socket.set_read_timeout(limit)?;
        socket.set_write_timeout(limit)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        Ok(socket)
    })
}

/// Makes an association through the host port, or exchanges the first packets of one. The pod sees the
/// client at address `seen`.
fn handshake(lab: &Lab, pod: &Netns, source: u16, seen: &str) {
    let client = match socket(&lab.client, source) {
        Ok(client) => client,
        Err(error) => {
            let is_there = std::env::var_os("PORTMAPPING_TEST_SCTP").is_some();
            assert!(!is_there, "the kernel has SCTP: {error}");
            return first_packets(lab, pod, source, seen);
        }
    };
    let listener = socket(pod, 9040).expect("listener");
    listener.listen(1).expect("listen");
    let to = SocketAddr::new(ip(NODE), 20000);
    client.connect(&to.into()).expect("associate");
    let (server, peer) = listener.accept().expect("accept");
    let expected = SocketAddr::new(ip(seen), source);
    assert_eq!(peer.as_socket(), Some(expected));
    for (mut from, mut to) in [(&client, &server), (&server, &client)] {
        from.write_all(b"hello").expect("send");
        let mut text = [0; 5];
        to.read_exact(&mut text).expect("receive");
        assert_eq!(&text, b"hello");
    }
}

fn first_packets(lab: &Lab, pod: &Netns, source: u16, seen: &str) {
    let (client, pod) = (Raw::open(&lab.client), Raw::open(pod));
    client.send(NODE, source, 20000, 0, INIT);
    let expected = Packet {
        from: v4(seen),
        source,
        destination: 9040,
        chunk: INIT,
        intact: true,
    };
    assert_eq!(pod.receive(), expected);
    pod.send(seen, 9040, source, 0x1234, INIT_ACK);
    let expected = Packet {
        from: v4(NODE),
        source: 20000,
        destination: source,
        chunk: INIT_ACK,
        intact: true,
    };
    assert_eq!(client.receive(), expected);
}

fn handshake_is_translated_both_ways(backend: Backend) {
    let lab = Lab::new();
    lab.driver(backend).reconcile(&[
        map(Sctp, 20000, POD1, 9040),
        // the same number with another protocol is another port
        map(Tcp, 20000, POD2, 9040),
    ]);
    handshake(&lab, &lab.pod1, 44444, CLIENT);
}

fn moved_port_leads_elsewhere(backend: Backend) {
    let lab = Lab::new();
    let mut driver = lab.driver(backend);
    driver.reconcile(&[map(Sctp, 20000, POD1, 9040)]);
    handshake(&lab, &lab.pod1, 44444, CLIENT);
    driver.reconcile(&[map(Sctp, 20000, POD2, 9040)]);
    // the flow is the same, so its conntrack entry must be deleted
    handshake(&lab, &lab.pod2, 44444, CLIENT);
}

fn everything_is_masqueraded(backend: Backend) {
    let lab = Lab::new();
    let settings = Settings {
        masquerade: true,
        ..settings_for(range("20000-29999"))
    };
    let mut driver = lab.driver_with(backend, &settings);
    driver.reconcile(&[map(Sctp, 20000, POD1, 9040)]);
    handshake(&lab, &lab.pod1, 44444, "10.88.0.1");
}
