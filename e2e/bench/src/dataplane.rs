//! `e2e-bench dataplane`: the cost per packet. It measures new connections to the last of N
//! mappings and to a port of the node without a mapping, and datagrams. It compares us, the peers,
//! and plain routing as the lower limit.

mod rows;

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use portmapping_shared::Protocol::{self, Tcp, Udp};

use super::lab::{
    CONTAINER_PORT, IPTABLES_MAPPINGS, LAST_PORT, Lab, NODE_PORT, Node, mappings, pod, ports,
};
use super::ours::Backend;
use super::peers::{self, kube_proxy, portmap};
use super::probe::{Client, Servers};
use super::report::Report;
use super::stats::percentile;
use super::{Options, folder};
use e2e::progress::{Step, say};

const ROUNDS: u16 = 15;
const MOST: u16 = 20_000;
const COUNTS: [u16; 6] = [1, 100, 1_000, IPTABLES_MAPPINGS, 5_000, MOST];
/// nft takes minutes to load more Services than this. kube-proxy finds a Service in a map, so their
/// number has little effect.
const MOST_SERVICES: u16 = 5_000;
/// The prefix of pods that are reached by routing, without a mapping.
const PLAIN: &str = "10.244.0.0/16";
const TRACKED: &str = "10.245.0.0/16";
/// Any rule that asks for a connection's state makes the kernel track connections.
const TRACKING: &str = "nft 'table ip tracking { chain forward { type filter hook forward priority 0; ct state established accept; }; }'";

/// What forwards the packets of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Routed,
    RoutedAndTracked,
    Ours(Backend),
    Portmap(portmap::Kind),
    KubeProxyIptables,
    KubeProxyNftables,
}

/// The newest portmap makes the same iptables rules as Debian's (checked at the start), so only one
/// of the two is measured with iptables.
const PEERS: [Carrier; 5] = [
    Carrier::Portmap(portmap::Kind::Debian(peers::Iptables::Nft)),
    Carrier::Portmap(portmap::Kind::Debian(peers::Iptables::Legacy)),
    Carrier::Portmap(portmap::Kind::NewestNftables),
    Carrier::KubeProxyIptables,
    Carrier::KubeProxyNftables,
];

impl Carrier {
    fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed, no conntrack",
            Self::RoutedAndTracked => "routed + conntrack",
            Self::Ours(backend) => backend.name(),
            Self::Portmap(kind) => kind.name(),
            Self::KubeProxyIptables => "kube-proxy, iptables",
            Self::KubeProxyNftables => "kube-proxy, nftables, 5000 Services",
        }
    }

    /// Returns the largest number of mappings with which it is measured.
    fn most(self) -> u16 {
        match self {
            Self::Routed | Self::RoutedAndTracked => 0,
            Self::Ours(backend) => backend.most(MOST, IPTABLES_MAPPINGS),
            Self::Portmap(portmap::Kind::NewestNftables) => MOST,
            Self::Portmap(_) | Self::KubeProxyIptables => IPTABLES_MAPPINGS,
            Self::KubeProxyNftables => MOST_SERVICES,
        }
    }

    /// Returns the numbers of mappings with which it is measured. Peers have only the largest.
    fn counts(self, counts: &[u16]) -> Vec<u16> {
        let within = counts.iter().copied().filter(|count| *count <= self.most());
        match self {
            Self::Routed | Self::RoutedAndTracked => vec![0],
            Self::Ours(_) => within.collect(),
            _ => within.max().into_iter().collect(),
        }
    }

    fn install(self, lab: &Lab, node: &Node, protocol: Protocol, host_ports: &[u16]) -> Result<()> {
        match self {
            Self::Routed => lab.route(PLAIN, node),
            Self::RoutedAndTracked => {
                node.netns.sh(TRACKING)?;
                lab.route(TRACKED, node)
            }
            Self::Ours(backend) => {
                let mut driver = backend.open(&node.netns)?;
                driver.create(&node.netns, &mappings(protocol, host_ports)?)?;
                let desired = mappings(protocol, host_ports)?.into_iter().collect();
                driver.verify(&node.netns, &desired).map(drop)
            }
            Self::Portmap(kind) => {
                let protocol = protocol.to_string().to_lowercase();
                kind.rules(&protocol, host_ports).load(&node.netns)
            }
            Self::KubeProxyIptables => kube_proxy::iptables(host_ports).load(&node.netns),
            Self::KubeProxyNftables => {
                kube_proxy::nftables(host_ports, node.address).load(&node.netns)
            }
        }
    }
}

/// What is measured of a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    carrier: Carrier,
    mappings: u16,
    protocol: Protocol,
    /// Whether the port has no mapping; otherwise it is the last mapped one.
    unmapped: bool,
}

/// A case with its samples, one per round, in microseconds.
struct Measured {
    case: Case,
    /// Index of the node.
    node: usize,
    to: SocketAddrV4,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

pub(super) fn run(options: &Options) -> Result<Report> {
    let plugins = portmap::Plugins::find(&folder("dataplane")?)?;
    portmap::verify(&plugins)?;
    let mut lab = Lab::new()?;
    let servers = serve(&lab)?;
    let (nodes, mut all) = prepare(&mut lab, &servers, &COUNTS)?;
    let mut client = Client::new();
    let mut rounds = options.rounds(ROUNDS);
    let total = all.len();
    rounds.run(total, |round, index| {
        let Measured {
            case,
            node,
            to,
            p50,
            p99,
        } = &mut all[index];
        let node: &Node = &nodes[*node];
        if case.carrier != Carrier::Routed {
            // conntrack entries of earlier turns would make lookups slower
            node.netns.sh("conntrack -F 2>/dev/null")?;
        }
        let times = client
            .turn(&lab.client, node.client, *to, case.protocol)
            .with_context(|| format!("round {round}, {case:?}"))?;
        p50.push(percentile(&times, 50));
        p99.push(percentile(&times, 99));
        anyhow::Ok(())
    })?;
    Ok(rows::report(&all))
}

/// Starts the servers of the pod of the last mapping.
fn serve(lab: &Lab) -> Result<Servers> {
    let servers = Servers::default();
    for pod in [pod(LAST_PORT), tracked(pod(LAST_PORT))] {
        servers.tcp(&lab.pods, SocketAddrV4::new(pod, CONTAINER_PORT))?;
        servers.udp(&lab.pods, SocketAddrV4::new(pod, CONTAINER_PORT))?;
    }
    Ok(servers)
}

/// Makes a node per carrier and number of mappings, and returns what is measured on each.
fn prepare(lab: &mut Lab, servers: &Servers, counts: &[u16]) -> Result<(Vec<Node>, Vec<Measured>)> {
    let step = Step::start("nodes with rules");
    let ours = Backend::ALL.map(Carrier::Ours);
    let mut wanted = Vec::new();
    wanted.push((Carrier::Routed, 0, Tcp, false));
    // it also shows what a program of a node costs that has no rules of ours
    wanted.push((Carrier::RoutedAndTracked, 0, Tcp, true));
    for carrier in ours.into_iter().chain(PEERS) {
        let counts = carrier.counts(counts);
        let most = counts.iter().copied().max().unwrap_or_default();
        let each = counts.into_iter();
        wanted.extend(each.map(|count| (carrier, count, Tcp, count == most)));
        // kube-proxy's rules are the same for both protocols
        if !matches!(
            carrier,
            Carrier::KubeProxyIptables | Carrier::KubeProxyNftables
        ) {
            wanted.push((carrier, most, Udp, false));
        }
    }
    let mut nodes = Vec::new();
    let mut all = Vec::new();
    for (carrier, mappings, protocol, most) in wanted {
        let node = lab.node()?;
        let name = carrier.name();
        carrier
            .install(lab, &node, protocol, &ports(mappings))
            .with_context(|| format!("{mappings} {protocol} mappings of {name}"))?;
        let mut add = |protocol, unmapped, to| {
            let case = Case {
                carrier,
                mappings,
                protocol,
                unmapped,
            };
            let (p50, p99) = (Vec::new(), Vec::new());
            all.push(Measured {
                case,
                node: nodes.len(),
                to,
                p50,
                p99,
            });
        };
        let target = match carrier {
            Carrier::Routed => SocketAddrV4::new(pod(LAST_PORT), CONTAINER_PORT),
            Carrier::RoutedAndTracked => SocketAddrV4::new(tracked(pod(LAST_PORT)), CONTAINER_PORT),
            _ => SocketAddrV4::new(node.address, LAST_PORT),
        };
        add(protocol, false, target);
        if mappings == 0 {
            add(Udp, false, target);
        }
        if most {
            let at = SocketAddrV4::new(node.address, NODE_PORT);
            servers.tcp(&node.netns, at)?;
            add(Tcp, true, at);
            say(format_args!("  {name}: {mappings} mappings loaded"));
        }
        nodes.push(node);
    }
    step.done(nodes.len());
    Ok((nodes, all))
}

/// Returns the address of the same pod under the prefix that is routed and tracked.
fn tracked(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, _, c, d] = pod.octets();
    Ipv4Addr::new(a, 245, c, d)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_carrier_reaches_the_last_of_three_mappings() {
        let plugins = portmap::Plugins::find(&folder("test").expect("folder")).expect("plugins");
        portmap::verify(&plugins).expect("the rules in bulk are the plugin's");
        let mut lab = Lab::new().expect("lab");
        let servers = serve(&lab).expect("servers");
        let (nodes, all) = prepare(&mut lab, &servers, &[3]).expect("nodes");
        let mut client = Client::new();
        for Measured { case, node, to, .. } in &all {
            let from = nodes[*node].client;
            let times = client.turn(&lab.client, from, *to, case.protocol);
            assert!(!times.expect("turn").is_empty(), "{case:?}");
        }
        assert_eq!(all.len(), 5 + 3 * (Backend::ALL.len() + 3) + 2 * 2);
    }
}
