//! kube-proxy with a `NodePort` Service per mapping.
//!
//! A cluster has 2,768 node ports by default, and creating 20,000 Services would take longer than
//! the benchmark. So the rules come from a real kube-proxy 1.36 with three Services of one endpoint
//! each (peers/kube-proxy). The lines of the first Service are repeated with other names, addresses
//! and ports; a test checks this by making the lines of the second Service. The rules that count
//! packets to 127.0.0.1 (nfacct) are left out, to kube-proxy's advantage.

#[cfg(test)]
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::{Iptables, Rules};
use crate::lab::{FIRST_PORT, pod};

const IPTABLES: &str = include_str!("../../peers/kube-proxy/iptables.rules");
const NFTABLES: &str = include_str!("../../peers/kube-proxy/nftables.rules");

/// Everything that differs between the rules of two Services.
struct Service {
    name: String,
    /// Hash in the names of the chains KUBE-SVC- and KUBE-EXT-.
    chain: String,
    /// Hash in the name of the chain KUBE-SEP-.
    endpoint_chain: String,
    /// Hash in the names of the nftables chains.
    nft_chain: String,
    cluster_ip: String,
    endpoint: String,
    node_port: String,
}

impl Service {
    /// Returns the first Service of the recorded rules.
    fn recorded() -> Self {
        Self {
            name: "default/s1".to_owned(),
            chain: "WXDZ2HVMUQ5BIO6Q".to_owned(),
            endpoint_chain: "RFUER7WHK3S63MBZ".to_owned(),
            nft_chain: "DRAZA5EJ".to_owned(),
            cluster_ip: "10.96.1.1".to_owned(),
            endpoint: "10.244.9.1".to_owned(),
            node_port: "30001".to_owned(),
        }
    }

    fn new(host_port: u16) -> Self {
        let [high, low] = host_port.saturating_sub(FIRST_PORT).to_be_bytes();
        Self {
            name: format!("default/s{host_port}"),
            chain: format!("WXDZ2HVMUQ5{host_port}"),
            endpoint_chain: format!("RFUER7WHK3S{host_port}"),
            nft_chain: format!("DRA{host_port}"),
            cluster_ip: Ipv4Addr::new(10, 96, 1 + high, low).to_string(),
            endpoint: pod(host_port).to_string(),
            node_port: host_port.to_string(),
        }
    }

    /// Returns a line of the recorded Service, with the values of this one.
    fn say(&self, line: &str) -> String {
        let from = Self::recorded();
        let mut text = line.to_owned();
        for (from, to) in [
            (from.chain, &self.chain),
            (from.endpoint_chain, &self.endpoint_chain),
            (from.nft_chain, &self.nft_chain),
            (from.endpoint, &self.endpoint),
            (from.cluster_ip, &self.cluster_ip),
            (from.node_port, &self.node_port),
            (from.name, &self.name),
        ] {
            text = text.replace(&from, to);
        }
        text
    }
}

/// Returns which of the three Services a line of the recorded rules is about.
fn service_of(line: &str) -> Option<usize> {
    [
        ["default/s1", "WXDZ2HVMUQ5BIO6Q", "RFUER7WHK3S63MBZ"],
        ["default/s2", "LBIOHGXDVJNEO6GD", "RQJKKMXEPLJ5YJAY"],
        ["default/s3", "IW2DRLLLF67BXYG7", "NNVMO4ZTUWSZUP6H"],
    ]
    .iter()
    .position(|words| words.iter().any(|word| line.contains(word)))
}

/// Returns the rules in iptables mode. kube-proxy itself uses the kind of iptables of the node.
pub(crate) fn iptables(host_ports: &[u16]) -> Rules {
    let services: Vec<_> = host_ports.iter().map(|port| Service::new(*port)).collect();
    let mut text = String::new();
    for line in IPTABLES.lines() {
        match service_of(line) {
            // each recorded line is repeated for every Service; the order within a chain stays
            Some(0) => {
                for service in &services {
                    text += &service.say(line);
                    text.push('\n');
                }
            }
            Some(_) => {}
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    Rules::Iptables(Iptables::Nft, text)
}

/// Returns the rules in nftables mode, for a node with this address.
pub(crate) fn nftables(host_ports: &[u16], node_address: Ipv4Addr) -> Rules {
    let services: Vec<_> = host_ports.iter().map(|port| Service::new(*port)).collect();
    let mut text = nftables_frame(&services, node_address);
    let chains = nftables_chains("DRAZA5EJ");
    for service in &services {
        text += &service.say(&chains);
    }
    text += "}\n";
    Rules::Nftables(text)
}

/// Returns everything except the chains of Services, with these Services in the sets.
fn nftables_frame(services: &[Service], node_address: Ipv4Addr) -> String {
    let mut text = String::new();
    let (mut set, mut dropping) = ("", false);
    for line in NFTABLES.lines() {
        if line.contains("chain service-2QRHZV4L") {
            break;
        }
        if let Some(name) = line.strip_prefix("\tset ").or(line.strip_prefix("\tmap ")) {
            set = name.trim_end_matches(" {");
        }
        if line.starts_with("\t\telements =") {
            dropping = true;
            let element = |service: &Service| match set {
                "cluster-ips" => service.say("10.96.1.1"),
                "service-ips" => {
                    service.say("10.96.1.1 . tcp . 80 : goto service-DRAZA5EJ-default/s1/tcp/")
                }
                _ => service.say("tcp . 30001 : goto external-DRAZA5EJ-default/s1/tcp/"),
            };
            let elements = match set {
                "nodeport-ips" => node_address.to_string(),
                _ => services.iter().map(element).collect::<Vec<_>>().join(", "),
            };
            let _ = writeln!(text, "\t\telements = {{ {elements} }}");
        }
        if !dropping {
            text += line;
            text.push('\n');
        }
        dropping &= !line.ends_with('}');
    }
    text
}

/// Returns the chains of the recorded Service with this hash.
fn nftables_chains(hash: &str) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in NFTABLES.lines() {
        inside |= line.starts_with("\tchain ") && line.contains(hash);
        if inside {
            text += line;
            text.push('\n');
        }
        inside &= line != "\t}";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second() -> Service {
        Service {
            name: "default/s2".to_owned(),
            chain: "LBIOHGXDVJNEO6GD".to_owned(),
            endpoint_chain: "RQJKKMXEPLJ5YJAY".to_owned(),
            nft_chain: "RVHUJFO6".to_owned(),
            cluster_ip: "10.96.1.2".to_owned(),
            endpoint: "10.244.9.2".to_owned(),
            node_port: "30002".to_owned(),
        }
    }

    #[test]
    fn the_first_service_becomes_the_second_as_kube_proxy_wrote_it() {
        let of = |service| {
            let lines = IPTABLES.lines();
            lines.filter(move |line| service_of(line) == Some(service))
        };
        let said: BTreeSet<_> = of(0).map(|line| second().say(line)).collect();
        let recorded: BTreeSet<_> = of(1).map(str::to_owned).collect();
        assert_eq!(said.len(), 11, "{said:?}");
        assert_eq!(said, recorded);

        let chains = nftables_chains("DRAZA5EJ");
        assert!(
            chains.contains("dnat ip to") && chains.contains("\tchain external-"),
            "{chains}"
        );
        assert_eq!(second().say(&chains), nftables_chains("RVHUJFO6"));
        for element in [
            "10.96.1.2 . tcp . 80 : goto service-RVHUJFO6-default/s2/tcp/",
            "tcp . 30002 : goto external-RVHUJFO6-default/s2/tcp/",
        ] {
            assert!(NFTABLES.contains(element), "{element}");
        }
    }

    #[test]
    fn no_recorded_service_is_left_in_the_frame() {
        let frame = nftables_frame(&[], Ipv4Addr::new(172, 20, 1, 1));
        assert!(
            !frame.contains("/tcp/") && !frame.contains("10.96.1."),
            "{frame}"
        );
        assert!(frame.contains("elements = { 172.20.1.1 }"), "{frame}");
        assert!(frame.contains("chain reject-chain"), "{frame}");
        let Rules::Iptables(_, text) = iptables(&[10_000, 29_999]) else {
            panic!("not iptables")
        };
        assert!(
            !text.contains("default/s2\"") && !text.contains("default/s1\""),
            "{text}"
        );
        assert!(
            text.contains("--dport 29999 -j KUBE-EXT-WXDZ2HVMUQ529999"),
            "{text}"
        );
    }
}
