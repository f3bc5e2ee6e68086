//! What a pod sends to a host port of its own: masqueraded, or its own address as the sender would
//! make it answer past the node.
//!
//! ```text
//! PORTMAPPING-MASQ  -m bpf (source == destination) -j MASQUERADE
//! ```
//!
//! Where the kernel or iptables lacks the match, each pod has a rule:
//!
//! ```text
//! PORTMAPPING-MASQ -g-> PORTMAPPING-MASQ-7 -g-> PORTMAPPING-MASQ-7-2 -g-> PORTMAPPING-HAIRPIN
//! (by last address bits)                        one rule per pod          masquerade
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::family::Family;
use super::{Layout, MASQUERADE};

/// The chain that masquerades. Pods' rules lead here instead of doing it: iptables-nft has the
/// kernel check every target of its own at each change, and a jump is checked in a third of the time.
const HAIRPIN: &str = "PORTMAPPING-HAIRPIN";

/// Chains over which pods are spread by the last bits of their address, and again by the bits
/// before those: in a subnet of 256 each has a chain to itself.
const BUCKETS: u8 = 16;

/// How the rules know that a pod sends to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Hairpin {
    /// One rule compares the packet's addresses, at no cost per pod.
    Compared,
    /// A rule for each pod.
    PerPod,
}

impl fmt::Display for Hairpin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compared => "one rule masquerades what pods send themselves",
            Self::PerPod => {
                "one rule per pod masquerades what it sends itself (slower: iptables or the kernel lacks xt_bpf)"
            }
        })
    }
}

impl Layout {
    /// The end of the chain that masquerades.
    pub(super) fn hairpin_rules(&self) -> Vec<String> {
        match self.hairpin {
            Hairpin::Compared => vec![comparison(self.family)],
            Hairpin::PerPod => (0..BUCKETS)
                .map(|low| self.dispatch(low, 1, &branch(low)))
                .collect(),
        }
    }

    /// The chains that lead to the rules of pods, without those.
    pub(super) fn pod_frame(&self) -> Vec<(String, Vec<String>)> {
        if self.hairpin == Hairpin::Compared {
            return Vec::new();
        }
        let mut chains = vec![(HAIRPIN.to_owned(), vec!["-j MASQUERADE".to_owned()])];
        for low in 0..BUCKETS {
            let dispatch =
                (0..BUCKETS).map(|high| self.dispatch(high, BUCKETS, &leaf_bucket(low, high)));
            chains.push((branch(low), dispatch.collect()));
            chains.extend((0..BUCKETS).map(|high| (leaf_bucket(low, high), Vec::new())));
        }
        chains
    }

    /// Whether pods have rules of their own.
    pub(in super::super) fn has_pod_rules(&self) -> bool {
        self.hairpin == Hairpin::PerPod
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

    /// Masquerades what a pod sends itself.
    pub(in super::super) fn pod_rule(&self, pod: IpAddr) -> String {
        let length = self.family.host_length();
        format!("-s {pod}/{length} -d {pod}/{length} -g {HAIRPIN}")
    }

    /// The pod that a rule masquerades towards itself.
    pub(in super::super) fn pod_of(&self, rule: &str) -> Option<IpAddr> {
        let (pod, _) = rule.strip_prefix("-s ")?.split_once('/')?;
        let pod = pod.parse().ok()?;
        (Family::of(pod) == self.family && self.pod_rule(pod) == rule).then_some(pod)
    }
}

/// Masquerades every packet whose source is its destination. Classic BPF from the IP header on
/// (`xt_bpf`); the chain before has let pass only translated connections to our ports.
pub(in super::super) fn comparison(family: Family) -> String {
    // ld [source]; tax; ld [destination]; jeq x, next, to "ret 0" at the end
    let compare = |source: u32, destination: u32, left: u32| {
        format!("32 0 0 {source},7 0 0 0,32 0 0 {destination},29 0 {left} 0")
    };
    let (first_source, first_destination, words) = match family {
        Family::V4 => (12, 16, 1),
        Family::V6 => (8, 24, 4),
    };
    let steps: Vec<String> = (0..words)
        .map(|word| {
            let left = 4 * (words - 1 - word) + 1;
            compare(first_source + 4 * word, first_destination + 4 * word, left)
        })
        .collect();
    let (length, steps) = (4 * words + 2, steps.join(","));
    format!("-m bpf --bytecode \"{length},{steps},6 0 0 65535,6 0 0 0\" -j MASQUERADE")
}

/// The chain that has a pod's rule.
pub(in super::super) fn bucket(pod: IpAddr) -> String {
    let last = match pod {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    leaf_bucket(last % BUCKETS, last / BUCKETS)
}

/// Whether a chain has rules of pods, by its name.
pub(in super::super) fn is_bucket(chain: &str) -> bool {
    chain
        .strip_prefix(MASQUERADE)
        .is_some_and(|rest| rest.starts_with('-'))
}

fn branch(low: u8) -> String {
    format!("{MASQUERADE}-{low}")
}

fn leaf_bucket(low: u8, high: u8) -> String {
    format!("{MASQUERADE}-{low}-{high}")
}
