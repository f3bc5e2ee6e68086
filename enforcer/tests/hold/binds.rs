//! What a held port is to the rest of the node.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno as SystemErrno;
use nix::unistd::gettid;
use portmapping_keeper::wire::{Errno, HoldOutcome};
use portmapping_shared::PortKey;
use portmapping_shared::Protocol::{self, Sctp, Tcp, Udp};
use socket2::Domain;

use crate::world::{NODE_IP, Node, bind_any, block_on, in_netns, ip, ports, socket, soon};

const IN_USE: HoldOutcome = HoldOutcome::Refused(Errno(SystemErrno::EADDRINUSE as i32));

/// Every way to bind that the kernel knows.
fn challenge(port: PortKey) {
    for address in ["::", "0.0.0.0", "127.0.0.1", "::1", NODE_IP] {
        let ip: IpAddr = address.parse().unwrap();
        for (reuse_address, reuse_port, only_v6) in (0..8).map(|n| (n & 1, n & 2, n & 4)) {
            let socket = socket(
                if ip.is_ipv6() {
                    Domain::IPV6
                } else {
                    Domain::IPV4
                },
                port.0,
            );
            if ip.is_ipv6() {
                socket.set_only_v6(only_v6 != 0).unwrap();
            }
            socket.set_reuse_address(reuse_address != 0).unwrap();
            socket.set_reuse_port(reuse_port != 0).unwrap();
            let bound = socket.bind(&SocketAddr::from((ip, port.1.get())).into());
            let refused = bound.expect_err("bound").kind() == ErrorKind::AddrInUse;
            assert!(
                refused,
                "{port:?} at {address}: {reuse_address} {reuse_port} {only_v6}"
            );
        }
    }
}

#[test]
fn held_port_refuses_every_bind() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        for protocol in [Tcp, Udp] {
            let held = ports(protocol, 20000, 1);
            keeper.hold(&held);
            challenge(held[0]);
        }
        // std sets SO_REUSEADDR and listens, as servers do
        let error = TcpListener::bind((NODE_IP, 20000)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
    });
}

#[test]
fn held_tcp_port_resets_connections() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        keeper.hold(&ports(Tcp, 20000, 1));
        for ip in ["127.0.0.1", "::1", NODE_IP] {
            let address = SocketAddr::new(ip.parse().unwrap(), 20000);
            let error = TcpStream::connect_timeout(&address, soon()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
        }
    });
}

#[test]
fn held_udp_port_is_unreachable_from_other_hosts() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let held = ports(Udp, 20000, 1);
        keeper.hold(&held);
        let (tell_thread, thread) = mpsc::channel();
        let (tell_ready, ready) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                in_netns(move || {
                    tell_thread.send(gettid()).unwrap();
                    ready.recv().unwrap();
                    for ip in ["10.98.0.1", "fd98::1"] {
                        assert_eq!(ask(ip, 20000), ErrorKind::ConnectionRefused, "{ip}");
                    }
                });
            });
            let peer_thread = thread.recv().unwrap();
            ip(&format!(
                "link add va type veth peer name vb netns {peer_thread}"
            ));
            // from here, because a namespace of a thread has no name
            for (addresses, link, enter) in [
                (["10.98.0.1/24", "fd98::1/64"], "va", String::new()),
                (
                    ["10.98.0.2/24", "fd98::2/64"],
                    "vb",
                    peer_thread.to_string(),
                ),
            ] {
                for address in addresses {
                    let nodad = if address.contains(':') { "nodad" } else { "" };
                    run_ip(&enter, &format!("addr add {address} dev {link} {nodad}"));
                }
                run_ip(&enter, &format!("link set {link} up"));
            }
            tell_ready.send(()).unwrap();
        });
        challenge(held[0]);
    });
}

fn run_ip(thread: &str, arguments: &str) {
    if thread.is_empty() {
        return ip(arguments);
    }
    let status = std::process::Command::new("nsenter")
        .arg(format!("--net=/proc/{thread}/ns/net"))
        .arg("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

/// Sends datagrams until an answer or an error comes back.
fn ask(ip: &str, port: u16) -> ErrorKind {
    let ip: IpAddr = ip.parse().unwrap();
    let local = if ip.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(local).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket.connect((ip, port)).unwrap();
    for _ in 0..50 {
        let result = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 8]));
        match result.map_err(|error| error.kind()) {
            // no answer yet: the link has only just come up
            Err(ErrorKind::WouldBlock | ErrorKind::NetworkUnreachable) => {}
            Err(kind) => return kind,
            Ok(_) => panic!("answered"),
        }
    }
    ErrorKind::TimedOut
}

#[test]
fn released_port_binds_again() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        for protocol in [Tcp, Udp] {
            let held = ports(protocol, 20000, 2);
            keeper.hold(&held);
            let mut client = keeper.client();
            assert_eq!(block_on(client.release(&held[..1])).unwrap(), 1);
            drop(bind_any(held[0]).unwrap());
            assert!(bind_any(held[1]).is_err(), "not asked to release");
            assert_eq!(
                block_on(client.release(&held[..1])).unwrap(),
                0,
                "released before"
            );
            keeper.hold_when_free(&held);
        }
    });
}

#[test]
fn port_of_another_process_is_refused_until_it_closes_it() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let mut client = keeper.client();
        for protocol in [Tcp, Udp] {
            let wanted = ports(protocol, 20000, 3);
            let other_process = bind_any(wanted[1]).unwrap();
            let outcomes = block_on(client.hold(&wanted)).unwrap();
            assert_eq!(outcomes, [HoldOutcome::Held, IN_USE, HoldOutcome::Held]);
            let HoldOutcome::Refused(errno) = outcomes[1] else {
                unreachable!()
            };
            assert!(errno.to_string().contains("in use"), "{errno}");
            drop(other_process);
            keeper.hold_when_free(&wanted);
        }
        // a live outgoing connection owns its source port as well
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let outgoing = socket(Domain::IPV4, Tcp);
        outgoing
            .bind(&SocketAddr::from(([127, 0, 0, 1], 20100)).into())
            .unwrap();
        outgoing
            .connect(&listener.local_addr().unwrap().into())
            .unwrap();
        assert_eq!(
            block_on(client.hold(&ports(Tcp, 20100, 1))).unwrap(),
            [IN_USE]
        );
    });
}

#[test]
fn udp_port_of_a_process_that_is_bound_to_a_device_is_refused() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        ip("link add eth1 type veth peer name eth2");
        for (number, address, device) in [
            (20000, "0.0.0.0", "eth1"),
            (20001, "::", "eth1"),
            (20002, "0.0.0.0", "lo"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let port = ports(Udp, number, 1)[0];
            let other = socket(Domain::for_address((address, 0).into()), Udp);
            other.bind_device(Some(device.as_bytes())).unwrap();
            other
                .bind(&SocketAddr::from((address, number)).into())
                .unwrap();
            let refused = block_on(keeper.client().hold(&[port])).unwrap();
            assert_eq!(refused, [IN_USE], "{address} on {device}");
            drop(other);
            keeper.hold_when_free(&[port]);
        }
    });
}

#[test]
fn hold_is_idempotent_and_holds_only_the_requested_ports() {
    in_netns(|| {
        let node = Node::new();
        let keeper = node.keeper("a");
        let mut client = keeper.client();
        let mut wanted = ports(Tcp, 20000, 2);
        wanted.extend(ports(Sctp, 20000, 1));
        wanted.extend(ports(Udp, 20001, 1));
        wanted.push(wanted[0]);
        let expected = [
            HoldOutcome::Held,
            HoldOutcome::Held,
            HoldOutcome::HeldWithoutSocket,
            HoldOutcome::Held,
            HoldOutcome::Held,
        ];
        for _ in 0..2 {
            assert_eq!(block_on(client.hold(&wanted)).unwrap(), expected);
        }
        let listed = block_on(client.list()).unwrap();
        assert_eq!(listed, wanted.iter().copied().collect());
        for (protocol, port) in [(Udp, 20000), (Tcp, 20002), (Tcp, 19999), (Udp, 20002)] {
            drop(bind_any(ports(protocol, port, 1)[0]).unwrap());
        }
        assert_eq!(block_on(client.release(&wanted)).unwrap(), 4);
        assert!(block_on(client.list()).unwrap().is_empty());
    });
}

#[test]
fn held_port_is_not_used_as_source_port() {
    in_netns(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "30000\t30009").unwrap();
        let node = Node::new();
        let keeper = node.keeper("a");
        for protocol in [Tcp, Udp] {
            let all = ports(protocol, 30000, 10);
            keeper.hold(&all[..7]);
            keeper.hold(&all[8..]);
            assert_eq!(source_port(protocol).unwrap(), 30007);
            keeper.hold(&all[7..8]);
            let picked = source_port(protocol);
            assert!(picked.is_err(), "{picked:?} picked though all are held");
        }
    });
}

/// What the kernel picks for a program that leaves the choice to it.
fn source_port(protocol: Protocol) -> io::Result<u16> {
    let socket = socket(Domain::IPV4, protocol);
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    Ok(socket
        .local_addr()?
        .as_socket()
        .map_or(0, |address| address.port()))
}
