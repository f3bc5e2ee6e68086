//! The machines of a benchmark, each a network namespace:
//!
//! ```text
//! client 172.20.N.2 ---- 172.20.N.1 node N 172.21.N.1 ---- 172.21.N.2 pods, 10.244.0.0/16
//! ```
//!
//! Each measured case has its own node, and all nodes exist at once, so that rounds can be
//! shuffled. The pods are one namespace, in which every pod address is local.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use portmapping_shared::{ContainerPort, HostPort, Mapping, PodUid, Protocol};

use super::netns::Netns;

/// Every host port that can be mapped: 20,000 of them.
pub(super) const FIRST_PORT: u16 = 10_000;
/// The last mapping of any number is on this port.
pub(super) const LAST_PORT: u16 = 29_999;
/// How many mappings iptables is measured with; nftables is measured with all 20,000.
pub(super) const IPTABLES_MAPPINGS: u16 = 2_000;
/// Host ports of one pod.
const PORTS_PER_POD: usize = 4;
/// The port on which pods listen.
pub(super) const CONTAINER_PORT: u16 = 9_040;
/// A port of the node itself, without a mapping.
pub(super) const NODE_PORT: u16 = 9_999;

/// The client and the pods, which all nodes share.
pub(super) struct Lab {
    pub(super) client: Netns,
    pub(super) pods: Netns,
    nodes: u8,
}

/// A machine between client and pods.
pub(super) struct Node {
    pub(super) netns: Netns,
    /// The address at which the client reaches the node.
    pub(super) address: Ipv4Addr,
    /// The address of the client on this node's network.
    pub(super) client: Ipv4Addr,
}

impl Lab {
    pub(super) fn new() -> Result<Self> {
        let (client, pods) = (machine()?, machine()?);
        pods.sh(
            "ip route add local 10.244.0.0/16 dev lo; ip route add local 10.245.0.0/16 dev lo",
        )?;
        let nodes = 0;
        Ok(Self {
            client,
            pods,
            nodes,
        })
    }

    /// Adds a node. Its neighbour entries are permanent, so that no turn begins with an ARP
    /// request.
    pub(super) fn node(&mut self) -> Result<Node> {
        let n = self.nodes.checked_add(1).context("too many nodes")?;
        self.nodes = n;
        let netns = machine()?;
        let (mac, pods_mac) = (
            |end: u8| format!("02:00:00:20:{n:02x}:{end:02x}"),
            |end: u8| format!("02:00:00:21:{n:02x}:{end:02x}"),
        );
        netns.sh(&format!(
            "ip link add cl address {} type veth peer name c{n} address {} netns {}
             ip link add pd address {} type veth peer name p{n} address {} netns {}
             ip address add 172.20.{n}.1/24 dev cl
             ip address add 172.21.{n}.1/24 dev pd
             ip link set cl up
             ip link set pd up
             ip neighbour replace 172.20.{n}.2 lladdr {} dev cl nud permanent
             ip neighbour replace 172.21.{n}.2 lladdr {} dev pd nud permanent",
            mac(1),
            mac(2),
            self.client.path(),
            pods_mac(1),
            pods_mac(2),
            self.pods.path(),
            mac(2),
            pods_mac(2),
        ))?;
        self.client.sh(&format!(
            "ip address add 172.20.{n}.2/24 dev c{n}
             ip link set c{n} up
             ip neighbour replace 172.20.{n}.1 lladdr {} dev c{n} nud permanent",
            mac(1)
        ))?;
        self.pods.sh(&format!(
            "ip address add 172.21.{n}.2/24 dev p{n}
             ip link set p{n} up
             ip neighbour replace 172.21.{n}.1 lladdr {} dev p{n} nud permanent
             ip route add 172.20.{n}.0/24 via 172.21.{n}.1",
            pods_mac(1)
        ))?;
        netns.sh(&format!(
            "ip route add 10.244.0.0/16 via 172.21.{n}.2; ip route add 10.245.0.0/16 via 172.21.{n}.2"
        ))?;
        Ok(Node {
            netns,
            address: Ipv4Addr::new(172, 20, n, 1),
            client: Ipv4Addr::new(172, 20, n, 2),
        })
    }

    /// Routes pods of another prefix through a node, without any mapping.
    pub(super) fn route(&self, prefix: &str, node: &Node) -> Result<()> {
        let script = format!("ip route add {prefix} via {}", node.address);
        self.client.sh(&script).map(drop)
    }
}

fn machine() -> Result<Netns> {
    let netns = Netns::new()?;
    netns.set("ipv4/ip_forward", "1")?;
    for scope in ["all", "default"] {
        netns.set(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    netns.set("core/somaxconn", "65535")?;
    Ok(netns)
}

/// Returns the address of the pod that has this host port as its last one.
pub(super) fn pod(host_port: u16) -> Ipv4Addr {
    let [high, low] = host_port.saturating_sub(FIRST_PORT).to_be_bytes();
    Ipv4Addr::new(10, 244, 1 + high, low)
}

/// Returns `count` host ports spread over the range; the last one is always [`LAST_PORT`].
pub(super) fn ports(count: u16) -> Vec<u16> {
    let step = (LAST_PORT - FIRST_PORT + 1) / count.max(1);
    (0..count)
        .rev()
        .map(|index| LAST_PORT - index * step)
        .collect()
}

/// Returns the mapping of a host port to its pod.
pub(super) fn mapping(protocol: Protocol, host_port: u16) -> Result<Mapping> {
    let owner: PodUid = format!("00000000-0000-4000-8000-0000000{host_port:05}")
        .parse()
        .context("a pod uid")?;
    Ok(Mapping {
        protocol,
        host_port: HostPort::new(host_port).context("host port 0")?,
        host_ip: None,
        pod_ip: IpAddr::V4(pod(host_port)),
        container_port: ContainerPort::new(CONTAINER_PORT).context("container port 0")?,
        owner,
    })
}

/// Returns the host ports of each pod: four, and fewer of the first. The pod has the address of its last one.
pub(super) fn by_pod(host_ports: &[u16]) -> impl Iterator<Item = &[u16]> {
    host_ports.rchunks(PORTS_PER_POD).rev()
}

/// Returns a mapping for each host port.
pub(super) fn mappings(protocol: Protocol, host_ports: &[u16]) -> Result<Vec<Mapping>> {
    let mut mappings = Vec::with_capacity(host_ports.len());
    for ports in by_pod(host_ports) {
        let Some(last) = ports.last() else { continue };
        let of_pod = mapping(protocol, *last)?;
        for port in ports {
            mappings.push(Mapping {
                host_port: HostPort::new(*port).context("host port 0")?,
                ..of_pod.clone()
            });
        }
    }
    Ok(mappings)
}
