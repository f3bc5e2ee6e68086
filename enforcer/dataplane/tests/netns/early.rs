//! Clients that send datagrams before their mapping exists, and continue, reach the pod afterwards.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use portmapping_shared::Mapping;
use portmapping_shared::Protocol::Udp;
use socket2::{Domain, Socket, Type};

use crate::lab::{Backend, Lab, NODE, NODE_V6, POD1, POD1_V6, at, map, patience};
use crate::netns::Netns;
use crate::serve::serve;

/// Mapped ports, each with an IPv4 and an IPv6 client.
const PORTS: u16 = 100;
/// Ports mapped in one change.
const TOGETHER: usize = 10;
/// How often each client sends.
const PERIOD: Duration = Duration::from_millis(50);
/// How long to wait until a client without an answer counts as stuck.
const PATIENCE: Duration = Duration::from_secs(10);

crate::for_each_backend!(
    clients_of_free_ports_get_through,
    clients_of_held_ports_get_through,
    clients_of_ports_that_never_answer_get_through,
);

fn clients_of_free_ports_get_through(backend: Backend) {
    early_clients_get_through(backend, "free ports", |_, _| None);
}

fn clients_of_held_ports_get_through(backend: Backend) {
    early_clients_get_through(backend, "held ports", |node, port| Some(hold(node, port)));
}

fn clients_of_ports_that_never_answer_get_through(backend: Backend) {
    early_clients_get_through(backend, "swallowing ports", |node, port| {
        Some(node.run(|| UdpSocket::bind(("::", port)).expect("bind")))
    });
}

/// Holds a port as the keeper does: all addresses of both families, on the loopback device only.
fn hold(node: &Netns, port: u16) -> UdpSocket {
    node.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).expect("socket");
        socket.set_only_v6(false).expect("both families");
        socket.bind_device(Some(b"lo")).expect("device");
        let any: std::net::SocketAddr = ([0; 16], port).into();
        socket.bind(&any.into()).expect("bind");
        socket.into()
    })
}

struct Client {
    socket: UdpSocket,
    mapped: Option<Instant>,
    heard: Option<Instant>,
}

impl Client {
    fn new(lab: &Lab, to: std::net::SocketAddr) -> Self {
        let any: std::net::IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0; 16].into()
        };
        let socket = lab.client.run(|| {
            let socket = UdpSocket::bind((any, 0)).expect("bind");
            socket.connect(to).expect("connect");
            socket.set_nonblocking(true).expect("nonblocking");
            socket
        });
        Self {
            socket,
            mapped: None,
            heard: None,
        }
    }

    fn send_and_listen(&mut self) {
        // errors of earlier datagrams are reported here, and ignored
        let mut buffer = [0; 64];
        if let Ok(length) = self.socket.recv(&mut buffer) {
            assert!(buffer[..length].starts_with(b"pod1"));
            self.heard.get_or_insert_with(Instant::now);
        }
        let _ = self.socket.send(b"who?");
    }
}

fn early_clients_get_through(
    backend: Backend,
    what: &str,
    holder: impl Fn(&Netns, u16) -> Option<UdpSocket>,
) {
    let lab = Lab::new();
    let _pod1 = serve(&lab.pod1, "pod1", 9040);
    let mut driver = lab.driver(backend);
    // the node tracks flows once it has a nat rule
    driver.reconcile(&[map(Udp, 29999, POD1, 9040), map(Udp, 29999, POD1_V6, 9040)]);
    let ports: Vec<u16> = (0..PORTS).map(|n| 20000 + 37 * n).collect();
    let _holders: Vec<Option<UdpSocket>> =
        ports.iter().map(|port| holder(&lab.node, *port)).collect();
    let mut clients: Vec<Client> = ports
        .iter()
        .flat_map(|port| [at(NODE, *port), at(NODE_V6, *port)])
        .map(|to| Client::new(&lab, to))
        .collect();
    let mut rest = ports.chunks(TOGETHER);
    let mut mapped = 0;
    let mut last_change = Instant::now();
    while clients.iter().any(|client| client.heard.is_none()) {
        assert!(
            last_change.elapsed() < patience(PATIENCE),
            "{what}: {} of {} clients are stuck",
            clients
                .iter()
                .filter(|client| client.heard.is_none())
                .count(),
            clients.len()
        );
        clients.iter_mut().for_each(Client::send_and_listen);
        if let Some(ports) = rest.next() {
            let mappings: Vec<Mapping> = ports
                .iter()
                .flat_map(|port| [map(Udp, *port, POD1, 9040), map(Udp, *port, POD1_V6, 9040)])
                .collect();
            // clients continue to send while the rules are made
            thread::scope(|scope| {
                let change = scope.spawn(|| driver.create(&mappings));
                while !change.is_finished() {
                    thread::sleep(Duration::from_millis(5));
                    clients.iter_mut().for_each(Client::send_and_listen);
                }
            });
            for client in &mut clients[mapped..mapped + mappings.len()] {
                client.mapped = Some(Instant::now());
            }
            mapped += mappings.len();
            last_change = Instant::now();
        }
        thread::sleep(PERIOD);
    }
    let longest = clients
        .iter()
        .filter_map(|client| Some(client.heard?.saturating_duration_since(client.mapped?)))
        .max();
    println!(
        "{backend}: {} clients of {what}, all heard at most {longest:?} after the rules",
        clients.len()
    );
}
