//! The rules as they should be, written as iptables-save writes them. Pure.
//!
//! ```text
//! PREROUTING  --+-> PORTMAPPING -g-> PORTMAPPING-TCP -g-> PORTMAPPING-TCP-20000-20483
//! OUTPUT      --+   (local dst.)     (range tree)          -g-> PORTMAPPING-TCP-20000-20021
//!                                                               mark (pod to itself), DNAT
//! POSTROUTING ----> PORTMAPPING-MASQ  masquerade what carries our mark, and nothing else
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use portmapping_shared::contract::{CHAIN_PREFIX, RULE_COMMENT_PREFIX};
use portmapping_shared::{HostPort, Mapping, Protocol};

use super::settings::Settings;
use super::tree::{self, Tree};

/// The chain in which every packet to a local address begins.
pub(super) const ENTRY: &str = CHAIN_PREFIX;
/// The chain that masquerades.
pub(super) const MASQUERADE: &str = "PORTMAPPING-MASQ";

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
        rule: "-m comment --comment portmapping -j PORTMAPPING-MASQ",
    },
];

/// Mappings by the leaf chain that holds them.
pub(super) type Leaves = BTreeMap<String, BTreeSet<Mapping>>;

/// Turns mappings into chains.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    settings: Settings,
    tree: Tree,
}

impl Layout {
    pub(super) fn new(settings: Settings) -> Self {
        let tree = Tree::new(settings.range);
        Self { settings, tree }
    }

    /// The chain that holds a mapping's rules.
    pub(super) fn leaf(&self, mapping: &Mapping) -> String {
        self.tree.leaf(mapping.protocol, mapping.host_port)
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

    /// Every chain of ours with all its rules, for the protocols that have a tree.
    pub(super) fn chains(
        &self,
        protocols: &BTreeSet<Protocol>,
        leaves: &Leaves,
    ) -> BTreeMap<String, Vec<String>> {
        let mut chains = BTreeMap::from([
            (ENTRY.to_owned(), self.entry_rules(protocols, leaves)),
            (MASQUERADE.to_owned(), self.masquerade_rules()),
        ]);
        for protocol in protocols {
            chains.extend(self.tree.chains(*protocol));
        }
        for (leaf, mappings) in leaves {
            chains.insert(leaf.clone(), self.leaf_rules(mappings));
        }
        chains
    }

    /// The jumps to the trees; ports outside the range have a chain only while there are some.
    pub(super) fn entry_rules(
        &self,
        protocols: &BTreeSet<Protocol>,
        leaves: &Leaves,
    ) -> Vec<String> {
        let port = |port: HostPort| u32::from(port.get());
        let range = port(self.tree.range().first())..=port(self.tree.range().last());
        let mut rules = Vec::new();
        for protocol in protocols {
            rules.push(tree::jump(*protocol, range.clone(), &Tree::root(*protocol)));
        }
        for protocol in protocols {
            let outside = Tree::outside(*protocol);
            if leaves.contains_key(&outside) {
                rules.push(format!("-p {} -g {outside}", protocol.as_kernel_str()));
            }
        }
        rules
    }

    /// The rules of one leaf.
    pub(super) fn leaf_rules(&self, mappings: &BTreeSet<Mapping>) -> Vec<String> {
        let mut ordered: Vec<&Mapping> = mappings.iter().collect();
        // a rule for one host address before the rule for all of them
        ordered.sort_by_key(|mapping| (mapping.host_port, Reverse(mapping.host_ip.is_some())));
        ordered
            .into_iter()
            .flat_map(|mapping| self.mapping_rules(mapping))
            .collect()
    }

    /// The mark for senders whose answers would not come back through the node, then the DNAT,
    /// which ends the packet's way through the table.
    fn mapping_rules(&self, mapping: &Mapping) -> [String; 2] {
        let Mapping {
            protocol,
            host_port,
            host_ip,
            pod_ip,
            container_port,
            owner,
        } = mapping;
        let protocol = protocol.as_kernel_str();
        let host_length = |ip| super::family::Family::of(ip).host_length();
        let sender = match self
            .settings
            .neighbours
            .iter()
            .find(|subnet| subnet.contains(*pod_ip))
        {
            Some(subnet) => subnet.to_string(),
            None => format!("{pod_ip}/{}", host_length(*pod_ip)),
        };
        let host = host_ip.map_or(String::new(), |ip| format!("-d {ip}/{} ", host_length(ip)));
        let ports = format!(
            "{host}-p {protocol} -m {protocol} --dport {host_port} -m comment --comment \"{RULE_COMMENT_PREFIX}{owner}\""
        );
        let mark = self.settings.mark;
        let to = SocketAddr::new(*pod_ip, container_port.get());
        [
            format!("-s {sender} {ports} -j MARK --set-xmark {mark}/{mark}"),
            format!("{ports} -j DNAT --to-destination {to}"),
        ]
    }

    fn masquerade_rules(&self) -> Vec<String> {
        let mark = self.settings.mark;
        vec![
            format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
            // the bit is free again for whoever looks at the packet next
            format!("-j MARK --set-xmark 0x0/{mark}"),
            "-j MASQUERADE".to_owned(),
        ]
    }
}

#[cfg(test)]
mod tests;
