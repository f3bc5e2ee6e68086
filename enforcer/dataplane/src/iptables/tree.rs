//! The range tree: which leaf chain holds the rules of a port, and the jumps that lead there.
//!
//! A packet takes at most three jumps through chains of at most `fan_out` rules, however many
//! ports the range has: 22 for 10,000, 28 for 20,000.

use std::ops::RangeInclusive;

use portmapping_shared::contract::CHAIN_PREFIX;
use portmapping_shared::{HostPort, PortRange, Protocol};

/// Levels of chains from the root of a protocol to a leaf.
const DEPTH: u32 = 3;

/// How the ports of a range are spread over chains; the same for every protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    range: PortRange,
    fan_out: u32,
}

/// A part of the range under one chain. `u32`, so that no sum of port numbers wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    last: u32,
    /// How many levels of jumps may still follow.
    levels: u32,
}

/// Which leaf a port belongs to, without its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    protocol: Protocol,
    /// None for the ports outside the range.
    span: Option<Span>,
}

impl Tree {
    pub(super) fn new(range: PortRange) -> Self {
        let enough = |f: &u32| usize::try_from(f.pow(DEPTH)).is_ok_and(|n| n >= range.size());
        // 41 levels out even 65,535 ports
        Self {
            range,
            fan_out: (1..41).find(enough).unwrap_or(41),
        }
    }

    pub(super) fn range(self) -> PortRange {
        self.range
    }

    /// The chain in which the tree of a protocol begins.
    pub(super) fn root(protocol: Protocol) -> String {
        format!("{CHAIN_PREFIX}-{protocol}")
    }

    /// The chain for ports of a protocol outside the range (the range was another before).
    pub(super) fn outside(protocol: Protocol) -> String {
        format!("{CHAIN_PREFIX}-{protocol}-OTHER")
    }

    /// The chain that holds the rules of a port.
    pub(super) fn leaf(self, protocol: Protocol, port: HostPort) -> String {
        self.leaf_at(self.place(protocol, port))
    }

    /// Where a port's rule is: ports with one place have one leaf.
    pub(super) fn place(self, protocol: Protocol, port: HostPort) -> Place {
        if !self.range.contains(port) {
            let span = None;
            return Place { protocol, span };
        }
        let port = u32::from(port.get());
        let mut span = self.whole();
        while !self.is_leaf(span) {
            let width = self.child_width(span);
            let first = span.first + (port - span.first) / width * width;
            span = Span {
                first,
                last: span.last.min(first + width - 1),
                levels: span.levels - 1,
            };
        }
        let span = Some(span);
        Place { protocol, span }
    }

    /// The chain of a place.
    pub(super) fn leaf_at(self, place: Place) -> String {
        match place.span {
            Some(span) => self.name(place.protocol, span),
            None => Self::outside(place.protocol),
        }
    }

    /// Every chain of a protocol's tree with its jumps; leaves have none.
    pub(super) fn chains(self, protocol: Protocol) -> Vec<(String, Vec<String>)> {
        let mut chains = Vec::new();
        let mut todo = vec![self.whole()];
        while let Some(span) = todo.pop() {
            let mut jumps = Vec::new();
            for child in self.children(span) {
                jumps.push(jump(
                    protocol,
                    child.first..=child.last,
                    &self.name(protocol, child),
                ));
                todo.push(child);
            }
            chains.push((self.name(protocol, span), jumps));
        }
        chains
    }

    fn whole(self) -> Span {
        let (first, last) = (self.range.first().get(), self.range.last().get());
        Span {
            first: first.into(),
            last: last.into(),
            levels: DEPTH - 1,
        }
    }

    /// A span that one chain can hold needs no jumps of its own, on whatever level it is.
    fn is_leaf(self, span: Span) -> bool {
        span.levels == 0 || span.last - span.first < self.fan_out
    }

    fn child_width(self, span: Span) -> u32 {
        self.fan_out.pow(span.levels)
    }

    fn children(self, span: Span) -> impl Iterator<Item = Span> {
        let width = self.child_width(span);
        let firsts = (span.first..=span.last).step_by(usize::try_from(width).unwrap_or(1));
        let children = firsts.map(move |first| Span {
            first,
            last: span.last.min(first + width - 1),
            levels: span.levels.saturating_sub(1),
        });
        children.take(if self.is_leaf(span) { 0 } else { usize::MAX })
    }

    /// At most 28 characters, the longest name iptables takes; children are narrower than their
    /// parent, so no two chains share a name.
    fn name(self, protocol: Protocol, span: Span) -> String {
        if span == self.whole() {
            return Self::root(protocol);
        }
        format!("{CHAIN_PREFIX}-{protocol}-{}-{}", span.first, span.last)
    }
}

/// A rule that sends the ports on to a chain for good: with `-g` a miss returns to the caller of
/// our entry chain at once.
pub(super) fn jump(protocol: Protocol, ports: RangeInclusive<u32>, chain: &str) -> String {
    let protocol = protocol.as_kernel_str();
    let (first, last) = ports.into_inner();
    if first == last {
        return format!("-p {protocol} -m {protocol} --dport {first} -g {chain}");
    }
    format!("-p {protocol} -m {protocol} --dport {first}:{last} -g {chain}")
}

#[cfg(test)]
mod tests;
