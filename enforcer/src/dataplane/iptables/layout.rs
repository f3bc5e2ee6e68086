//! The rules as they should be, written as iptables-save writes them. Pure.
//!
//! ```text
//! PREROUTING  --+-> PORTMAPPING -g-> PORTMAPPING-TCP -g-> PORTMAPPING-TCP-20000-20483
//! OUTPUT      --+   (local dst.)     (range tree)          -g-> PORTMAPPING-TCP-20000-20021
//!                                                               DNAT, one rule per mapping
//! POSTROUTING ----> PORTMAPPING-MASQ -g-> PORTMAPPING-MASQ-7 -g-> PORTMAPPING-MASQ-7-2
//!     (translated)  (by last address bits)                        one rule per pod
//!                                         -g-> PORTMAPPING-HAIRPIN  masquerade
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portmapping_shared::contract::{CHAIN_PREFIX, RULE_COMMENT_PREFIX};
use portmapping_shared::{HostPort, Mapping, Protocol};

use super::family::Family;
use super::settings::{Settings, Subnet};
use super::tree::{self, Tree};

/// The chain in which every packet to a local address begins.
pub(super) const ENTRY: &str = CHAIN_PREFIX;
/// The chain that leads translated packets to the rules that masquerade.
pub(super) const MASQUERADE: &str = "PORTMAPPING-MASQ";

/// The chain that masquerades. Pods' rules lead here instead of doing it: iptables-nft has the
/// kernel check every target of its own at each change, and a jump is checked in a third of the time.
const HAIRPIN: &str = "PORTMAPPING-HAIRPIN";

/// A jump from a built-in chain into one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Jump {
    /// The built-in chain.
    pub(super) from: &'static str,
    /// The chain of ours.
    pub(super) to: &'static str,
    /// The rule, without its chain.
    pub(super) rule: &'static str,
}

/// What all jumps carry as comment, so that an edited one is known for ours.
pub(super) const JUMP_COMMENT: &str = "portmapping";

/// Each must be the first rule of its chain: CNI portmap puts its own jump in front as well, and
/// CNI's masquerade chains accept what pods send each other.
pub(super) const JUMPS: [Jump; 3] = [
    Jump {
        from: "PREROUTING",
        to: ENTRY,
        rule: "-m addrtype --dst-type LOCAL -m comment --comment portmapping -j PORTMAPPING",
    },
    Jump {
        from: "OUTPUT",
        to: ENTRY,
        rule: "-m addrtype --dst-type LOCAL -m comment --comment portmapping -j PORTMAPPING",
    },
    Jump {
        from: "POSTROUTING",
        to: MASQUERADE,
        rule: "-m conntrack --ctstate DNAT -m comment --comment portmapping -j PORTMAPPING-MASQ",
    },
];

/// Chains over which pods are spread by the last bits of their address, and again by the bits
/// before those: in a subnet of 256 each has a chain to itself.
const BUCKETS: u8 = 16;

/// Mappings by the leaf chain that holds them.
pub(super) type Leaves = BTreeMap<String, BTreeSet<Mapping>>;
/// How many mappings lead to each pod address that has a rule; 0 where only the rule is left.
pub(super) type Pods = BTreeMap<IpAddr, usize>;

/// Turns mappings into chains.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    family: Family,
    settings: Settings,
    tree: Tree,
}

impl Layout {
    pub(super) fn new(family: Family, settings: Settings) -> Self {
        let tree = Tree::new(settings.range);
        Self {
            family,
            settings,
            tree,
        }
    }

    /// Other neighbours than before.
    pub(super) fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.settings.neighbours = neighbours.to_vec();
    }

    /// The chain that holds a mapping's rules.
    pub(super) fn leaf(&self, mapping: &Mapping) -> String {
        self.tree.leaf(mapping.protocol, mapping.host_port)
    }

    /// Whether a mapping has its place in the range tree.
    pub(super) fn is_in_range(&self, mapping: &Mapping) -> bool {
        self.tree.range().contains(mapping.host_port)
    }

    /// Sorts mappings into their leaves.
    pub(super) fn leaves(&self, mappings: impl IntoIterator<Item = Mapping>) -> Leaves {
        let mut leaves = Leaves::new();
        for mapping in mappings {
            leaves
                .entry(self.leaf(&mapping))
                .or_default()
                .insert(mapping);
        }
        leaves
    }

    /// The chains that lead to the rules of mappings and pods, and those without their rules.
    pub(super) fn frame(
        &self,
        protocols: &BTreeSet<Protocol>,
        leaves: &Leaves,
    ) -> BTreeMap<String, Vec<String>> {
        let outside = protocols
            .iter()
            .copied()
            .filter(|protocol| leaves.contains_key(&Tree::outside(*protocol)));
        let outside: Vec<Protocol> = outside.collect();
        let mut chains = BTreeMap::from([
            (ENTRY.to_owned(), self.entry_rules(protocols, &outside)),
            (
                MASQUERADE.to_owned(),
                self.masquerade_rules(outside.is_empty()),
            ),
        ]);
        for protocol in protocols {
            chains.extend(self.tree.chains(*protocol));
        }
        chains.extend(outside.into_iter().map(|p| (Tree::outside(p), Vec::new())));
        for low in 0..BUCKETS {
            let dispatch =
                (0..BUCKETS).map(|high| self.dispatch(high, BUCKETS, &leaf_bucket(low, high)));
            chains.insert(branch(low), dispatch.collect());
            chains.extend((0..BUCKETS).map(|high| (leaf_bucket(low, high), Vec::new())));
        }
        chains.insert(HAIRPIN.to_owned(), vec!["-j MASQUERADE".to_owned()]);
        chains
    }

    /// Every chain of ours with all its rules, for the protocols that have a tree.
    pub(super) fn chains(
        &self,
        protocols: &BTreeSet<Protocol>,
        leaves: &Leaves,
        pods: &Pods,
    ) -> BTreeMap<String, Vec<String>> {
        let mut chains = self.frame(protocols, leaves);
        for (leaf, mappings) in leaves {
            chains.insert(leaf.clone(), leaf_rules(mappings));
        }
        for pod in pods.keys() {
            let rules = chains.entry(bucket(*pod)).or_default();
            rules.push(self.pod_rule(*pod));
        }
        chains
    }

    /// The jumps to the trees; ports outside the range have a chain only while there are some.
    fn entry_rules(&self, protocols: &BTreeSet<Protocol>, outside: &[Protocol]) -> Vec<String> {
        let port = |port: HostPort| u32::from(port.get());
        let range = port(self.tree.range().first())..=port(self.tree.range().last());
        let jumps = protocols
            .iter()
            .map(|protocol| tree::jump(*protocol, range.clone(), &Tree::root(*protocol)));
        let others = outside.iter().map(|protocol| {
            let chain = Tree::outside(*protocol);
            format!("-p {} -g {chain}", protocol.as_kernel_str())
        });
        jumps.chain(others).collect()
    }

    /// Neighbours, where they need it, then the pods by the last bits of their address. Other
    /// translated connections than ours are none of our business.
    fn masquerade_rules(&self, in_range_only: bool) -> Vec<String> {
        let mut rules = Vec::new();
        if in_range_only {
            let (first, last) = (self.tree.range().first(), self.tree.range().last());
            let ports = if first == last {
                first.to_string()
            } else {
                format!("{first}:{last}")
            };
            rules.push(format!("-m conntrack ! --ctorigdstport {ports} -j RETURN"));
        }
        let neighbours = self.settings.neighbours.iter();
        for subnet in neighbours.filter(|subnet| subnet.family() == self.family) {
            rules.push(format!("-s {subnet} -d {subnet} -j MASQUERADE"));
        }
        rules.extend((0..BUCKETS).map(|low| self.dispatch(low, 1, &branch(low))));
        rules
    }

    /// A jump for the pods whose address has these bits at the place worth `unit`.
    fn dispatch(&self, bits: u8, unit: u8, chain: &str) -> String {
        let address = |byte: u8| -> IpAddr {
            match self.family {
                Family::V4 => Ipv4Addr::from_bits(byte.into()).into(),
                Family::V6 => Ipv6Addr::from_bits(byte.into()).into(),
            }
        };
        let (bits, mask) = (address(bits * unit), address((BUCKETS - 1) * unit));
        format!("-d {bits}/{mask} -g {chain}")
    }

    /// Masquerades what a pod sends itself: its own address as the sender would make it answer
    /// past the node.
    pub(super) fn pod_rule(&self, pod: IpAddr) -> String {
        let length = self.family.host_length();
        format!("-s {pod}/{length} -d {pod}/{length} -g {HAIRPIN}")
    }

    /// The pod that a rule masquerades towards itself.
    pub(super) fn pod_of(&self, rule: &str) -> Option<IpAddr> {
        let (pod, _) = rule.strip_prefix("-s ")?.split_once('/')?;
        let pod = pod.parse().ok()?;
        (Family::of(pod) == self.family && self.pod_rule(pod) == rule).then_some(pod)
    }
}

/// The rules of one leaf.
pub(super) fn leaf_rules(mappings: &BTreeSet<Mapping>) -> Vec<String> {
    let mut ordered: Vec<&Mapping> = mappings.iter().collect();
    // a rule for one host address before the rule for all of them
    ordered.sort_by_key(|mapping| (mapping.host_port, Reverse(mapping.host_ip.is_some())));
    ordered.into_iter().map(mapping_rule).collect()
}

/// The chain that has a pod's rule.
pub(super) fn bucket(pod: IpAddr) -> String {
    let last = match pod {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    leaf_bucket(last % BUCKETS, last / BUCKETS)
}

fn branch(low: u8) -> String {
    format!("{MASQUERADE}-{low}")
}

fn leaf_bucket(low: u8, high: u8) -> String {
    format!("{MASQUERADE}-{low}-{high}")
}

/// The DNAT, which ends the packet's way through the table.
pub(super) fn mapping_rule(mapping: &Mapping) -> String {
    let Mapping {
        protocol,
        host_port,
        host_ip,
        pod_ip,
        container_port,
        owner,
    } = mapping;
    let protocol = protocol.as_kernel_str();
    let host = host_ip.map_or(String::new(), |ip| {
        format!("-d {ip}/{} ", Family::of(ip).host_length())
    });
    let to = SocketAddr::new(*pod_ip, container_port.get());
    format!(
        "{host}-p {protocol} -m {protocol} --dport {host_port} -m comment --comment \"{RULE_COMMENT_PREFIX}{owner}\" -j DNAT --to-destination {to}"
    )
}

#[cfg(test)]
mod tests;
