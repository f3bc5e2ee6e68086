//! The rules as they should be, written as iptables-save writes them. Pure.
//!
//! ```text
//! PREROUTING  --+-> PORTMAPPING -g-> PORTMAPPING-TCP -g-> PORTMAPPING-TCP-20000-20483
//! OUTPUT      --+   (local dst.)     (range tree)          -g-> PORTMAPPING-TCP-20000-20021
//!                                                               DNAT, one rule per mapping
//! POSTROUTING ----> PORTMAPPING-MASQ  masquerade what a pod sends itself
//!     (translated)
//!                   PORTMAPPING-UID-TCP-20000  whose the mappings of a leaf are; no packet comes here
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use portmapping_shared::contract::CHAIN_PREFIX;
use portmapping_shared::{HostPort, Mapping, Protocol};

use super::family::Family;
use super::notes;
use super::rule::Route;
use super::settings::{Settings, Subnet};
use super::tree::{self, Place, Tree};

/// The chain in which every packet to a local address begins.
pub(super) const ENTRY: &str = CHAIN_PREFIX;
/// The chain that leads translated packets to the rules that masquerade.
pub(super) const MASQUERADE: &str = "PORTMAPPING-MASQ";

mod hairpin;

pub(super) use hairpin::{Hairpin, bucket, comparison, is_bucket};

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
    hairpin: Hairpin,
}

impl Layout {
    pub(super) fn new(family: Family, settings: Settings) -> Self {
        let tree = Tree::new(settings.range);
        Self {
            family,
            settings,
            tree,
            hairpin: Hairpin::Compared,
        }
    }

    /// How it is known that a pod sends to itself.
    pub(super) fn hairpin(&self) -> Hairpin {
        self.hairpin
    }

    /// The other way from now on.
    pub(super) fn set_hairpin(&mut self, hairpin: Hairpin) {
        self.hairpin = hairpin;
    }

    /// Other neighbours than before.
    pub(super) fn set_neighbours(&mut self, neighbours: &[Subnet]) {
        self.settings.neighbours = neighbours.to_vec();
    }

    /// The chain that holds a mapping's rules.
    pub(super) fn leaf(&self, mapping: &Mapping) -> String {
        self.tree.leaf(mapping.protocol, mapping.host_port)
    }

    /// Whether all of them belong into this chain. Names are made once a chain: they take longer than
    /// all the rest of it.
    pub(super) fn is_leaf_of<'a>(
        &self,
        chain: &str,
        mappings: impl IntoIterator<Item = &'a Mapping>,
    ) -> bool {
        let mut places = mappings.into_iter().map(|mapping| self.place(mapping));
        let Some(first) = places.next() else {
            return true;
        };
        self.tree.leaf_at(first) == chain && places.all(|place| place == first)
    }

    fn place(&self, mapping: &Mapping) -> Place {
        self.tree.place(mapping.protocol, mapping.host_port)
    }

    /// Whether a mapping has its place in the range tree.
    pub(super) fn is_in_range(&self, mapping: &Mapping) -> bool {
        self.tree.range().contains(mapping.host_port)
    }

    /// Sorts mappings into their leaves.
    pub(super) fn leaves(&self, mappings: impl IntoIterator<Item = Mapping>) -> Leaves {
        let mut leaves = Leaves::new();
        let mut mappings = mappings.into_iter().peekable();
        while let Some(mapping) = mappings.next() {
            let place = self.place(&mapping);
            let leaf = leaves.entry(self.tree.leaf_at(place)).or_default();
            leaf.insert(mapping);
            // as they were read they come leaf by leaf
            while let Some(mapping) = mappings.next_if(|next| self.place(next) == place) {
                leaf.insert(mapping);
            }
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
        chains.extend(self.pod_frame());
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
            chains.insert(notes::chain_of(leaf), notes::rules(mappings));
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

    /// The leaf whose notes a chain holds.
    pub(super) fn leaf_of_notes(&self, chain: &str) -> Option<String> {
        let leaf = |protocol: Protocol| {
            let (_, last) = chain.rsplit_once('-')?;
            let port = last.parse().ok().and_then(HostPort::new);
            // without a port it is that of the only leaf, or of the ports outside the range
            let leaves = [
                self.tree
                    .leaf(protocol, port.unwrap_or(self.tree.range().first())),
                Tree::outside(protocol),
            ];
            leaves
                .into_iter()
                .find(|leaf| notes::chain_of(leaf) == chain)
        };
        Protocol::ALL.into_iter().find_map(leaf)
    }

    /// Neighbours, where they need it, then what pods send themselves. Other translated connections
    /// than ours are none of our business.
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
        rules.extend(self.hairpin_rules());
        rules
    }
}

/// The rules of one leaf.
pub(super) fn leaf_rules(mappings: &BTreeSet<Mapping>) -> Vec<String> {
    let mut ordered: Vec<&Mapping> = mappings.iter().collect();
    // a rule for one host address before the rule for all of them
    ordered.sort_by_key(|mapping| (mapping.host_port, Reverse(mapping.host_ip.is_some())));
    ordered.into_iter().map(mapping_rule).collect()
}

/// The DNAT, which ends the packet's way through the table. Whose it is stands in the notes.
pub(super) fn mapping_rule(mapping: &Mapping) -> String {
    Route {
        protocol: mapping.protocol,
        host_port: mapping.host_port,
        host_ip: mapping.host_ip,
        to: SocketAddr::new(mapping.pod_ip, mapping.container_port.get()),
        owner: None,
    }
    .rule()
}

#[cfg(test)]
mod tests;
