//! A segment that conntrack calls invalid does not end its connection. A network that delays or
//! repeats packets sends such segments.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use portmapping_dataplane::Flavour;
use portmapping_shared::Protocol::{Tcp, Udp};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{self, Backend, CLIENT, Driver, Lab, NODE, POD1, at, ip, map, patience, range};
use crate::programs::Programs;
use crate::serve::{Conversation, serve};

crate::for_each_backend!(segment_outside_the_window_does_not_reset_the_connection);

const PATIENCE: Duration = Duration::from_secs(10);
const ACK: u8 = 16;
/// Further than any window.
const FAR: u32 = 1 << 30;

/// The TCP segments that a namespace receives, and may send itself.
struct Raw(Socket);

/// The header of a received segment, from the receiver's point of view.
struct Seen {
    own_port: u16,
    /// What the receiver sends next, and expects next.
    sequence: u32,
    expected: u32,
}

impl Raw {
    fn open(lab: &Lab) -> Self {
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP));
        let socket = lab.client.run(open).unwrap();
        socket.set_read_timeout(Some(patience(PATIENCE))).unwrap();
        Self(socket)
    }

    /// Returns the next segment with data.
    fn with_data(&self) -> Seen {
        let mut buffer = [0; 2000];
        loop {
            let length = (&self.0).read(&mut buffer).unwrap();
            let tcp = &buffer[usize::from(buffer[0] & 15) * 4..length];
            let data = tcp.len() - usize::from(tcp[12] >> 4) * 4;
            let word = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            if data > 0 {
                return Seen {
                    own_port: u16::from_be_bytes([tcp[2], tcp[3]]),
                    sequence: word(8),
                    expected: word(4) + u32::try_from(data).unwrap(),
                };
            }
        }
    }

    fn send(&self, to: &str, from_port: u16, to_port: u16, sequence: u32, ack: u32, flags: u8) {
        let mut segment = Vec::new();
        segment.extend(from_port.to_be_bytes());
        segment.extend(to_port.to_be_bytes());
        segment.extend(sequence.to_be_bytes());
        segment.extend(ack.to_be_bytes());
        segment.extend([5 << 4, flags]);
        segment.extend(1000_u16.to_be_bytes());
        segment.extend([0; 4]);
        let sum = checksum(&segment, to);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        let to = SocketAddr::new(ip(to), 0);
        self.0.send_to(&segment, &to.into()).unwrap();
    }
}

/// Returns the checksum of a segment from the client (RFC 9293, 3.1).
fn checksum(segment: &[u8], to: &str) -> u16 {
    let mut bytes = Vec::new();
    for address in [CLIENT, to] {
        let IpAddr::V4(address) = ip(address) else {
            panic!("{address}");
        };
        bytes.extend(address.octets());
    }
    bytes.extend([0, 6]);
    bytes.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
    bytes.extend(segment);
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// Returns how many packets conntrack called invalid.
fn invalid(lab: &Lab) -> u64 {
    let counts = lab.node.sh("conntrack -S");
    let counts = counts.split_whitespace();
    let counts = counts.filter_map(|word| word.strip_prefix("invalid=")?.parse::<u64>().ok());
    counts.sum()
}

fn segment_outside_the_window_does_not_reset_the_connection(backend: Backend) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)]);
    let raw = Raw::open(&lab);
    let mut conversation = Conversation::open(&lab.client, at(NODE, 20000)).unwrap();
    let seen = raw.with_data();
    let before = invalid(&lab);
    raw.send(
        NODE,
        seen.own_port,
        20000,
        seen.sequence.wrapping_add(FAR),
        seen.expected,
        ACK,
    );
    let begun = Instant::now();
    while invalid(&lab) == before {
        assert!(
            begun.elapsed() < patience(PATIENCE),
            "the segment does not arrive"
        );
    }
    conversation.goes_on();
    // rules that another program removes come back
    let damage = match backend {
        Backend::Nftables => "nft flush chain inet portmapping input".to_owned(),
        Backend::Iptables(flavour) => format!("{flavour} -w 30 -t mangle -F"),
    };
    lab.node.sh(&damage);
    assert!(!driver.observe().intact);
    driver.reconcile(&[map(Tcp, 20000, POD1, 9040), map(Udp, 20000, POD1, 9040)]);
    raw.send(
        NODE,
        seen.own_port,
        20000,
        seen.sequence.wrapping_add(FAR),
        seen.expected,
        ACK,
    );
    conversation.goes_on();
    driver.uninstall();
    for kind in [Flavour::Nft, Flavour::Legacy] {
        assert!(!lab.rules(kind).contains("PORTMAPPING"));
    }
}

#[test]
fn invalid_packets_to_static_host_ports_of_pods_are_left_to_their_programs() {
    for flavour in Flavour::ALL {
        let lab = Lab::new();
        let mappings = [map(Tcp, 20000, POD1, 9040)];
        let mut driver = lab.driver(flavour);
        driver.reconcile(&mappings);
        driver.set_static_ports(Tcp, &[20007]);
        let left_out = || {
            let rules = lab.rules(flavour);
            let drops = |ports: &str| rules.contains(&format!("--dport {ports} -j DROP"));
            drops("20000:20006") && drops("20008:29999")
        };
        driver.reconcile(&mappings);
        assert!(left_out(), "{}", lab.rules(flavour));
        // a restarted enforcer does not know them before it has read all pods
        drop(driver);
        let mut driver = lab.driver(flavour);
        assert!(driver.observe().intact);
        driver.reconcile(&mappings);
        assert!(left_out(), "{}", lab.rules(flavour));
        driver.set_static_ports(Tcp, &[]);
        driver.reconcile(&mappings);
        assert!(!left_out(), "{}", lab.rules(flavour));
    }
}

#[test]
fn invalid_packets_are_dropped_where_the_kernel_has_no_match_for_sctp() {
    for flavour in Flavour::ALL {
        invalid_packets_are_dropped_without_sctp(flavour);
    }
}

fn invalid_packets_are_dropped_without_sctp(flavour: Flavour) {
    let lab = Lab::new();
    let programs = Programs::new(flavour);
    for program in [
        flavour.to_string(),
        flavour.to_string().replacen("ip", "ip6", 1),
    ] {
        let restore = format!("{program}-restore");
        let script = format!(
            "text=$(cat); case $text in *'-m sctp'*) echo 'No chain/target/match by that name.' >&2; exit 1;; esac; \
             echo \"$text\" | /usr/sbin/{restore} \"$@\""
        );
        programs.replace(&restore, &script);
    }
    let settings = lab::settings_for(range("20000-29999"));
    let opened = lab
        .node
        .run(|| lab::open(flavour.into(), &settings, &programs.tools()));
    let mut driver = Driver::new(&lab.node, Box::new(opened.unwrap()));
    let mappings = [map(Tcp, 20000, POD1, 9040)];
    for _again in 0..2 {
        driver.reconcile(&mappings);
        let rules = lab.rules(flavour);
        for protocol in ["tcp", "udp"] {
            let rule = format!("-p {protocol} -m {protocol} --dport 20000:29999 -j DROP");
            assert!(rules.contains(&rule), "{rules}");
        }
        assert!(!rules.contains("sctp"), "{rules}");
        // what another program removes comes back
        lab.node.sh(&format!("{flavour} -w 30 -t mangle -F"));
        assert!(!driver.observe().intact);
    }
}
