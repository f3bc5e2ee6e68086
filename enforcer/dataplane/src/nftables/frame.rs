//! The table as it should be, without the mappings: sets, chains and rules.
//!
//! ```text
//! prerouting, output (-101)  in @bound4/6: DNAT; in @ports4/6: DNAT      (to @hosts4/6)
//! postrouting        (99)    begun to a mapped port, and from a pod to itself
//!                            or within a neighbour subnet: masquerade; if that is
//!                            set, also everything begun to a host address
//! input              (10)    drop what is invalid and sent to a mapped port; refuse first datagrams
//!                            to the range where no socket receives them
//! ```
//!
//! Priority -101: at -100, the chain registered last would come first, whether it is ours or one of
//! kube-proxy or CNI portmap. The map is looked up before the address: most packets are not in it.
//!
//! A connection of a pod to itself is found by comparing both addresses byte by byte, the last byte
//! first, with the pairs of equal bytes in @same. A set of pods would be as large as the maps, and
//! would have to be updated and read back like them. Kernels since 6.13 could compare in one step
//! (`NFT_BITWISE_XOR` of two registers), but `nft list ruleset` before 1.1.2 aborts at such a rule
//! in any table.
//!
//! A segment outside of the TCP window is not translated. The node has no connection for it and would
//! reset that of the client. So what conntrack calls invalid is dropped for mapped ports.
//!
//! A datagram to a port that is held, but not mapped yet, is refused. Otherwise it would create a
//! conntrack entry that bypasses the later mapping. Ports that another process may use are not
//! refused: those excluded by configuration, and those with a socket that receives from the device
//! on which the datagram arrived. The keeper's own sockets receive from device lo only, so they
//! count only for senders on this node; the entries of those senders are cleared when the mapping
//! is made. The chain comes after other filters, so that a datagram that a firewall drops gets no
//! answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use portmapping_shared::contract::NFT_TABLE;
use portmapping_shared::{PortRange, Protocol};

use crate::family::{Family, octets};
use crate::netlink::{Batch, Encoder, Header, flags};
use crate::settings::Settings;
use crate::subnet::Subnet;

use super::element::Foreign;
use super::expression::{Ip, Rule};
use super::sets::{SetId, SetShape};
use super::table::Content;

/// Messages of subsystem 10, `nf_tables`.
pub(super) mod message {
    pub(in super::super) const NEWTABLE: u16 = 0x0a00;
    pub(in super::super) const GETTABLE: u16 = 0x0a01;
    pub(in super::super) const DELTABLE: u16 = 0x0a02;
    pub(in super::super) const NEWCHAIN: u16 = 0x0a03;
    pub(in super::super) const GETCHAIN: u16 = 0x0a04;
    pub(in super::super) const NEWRULE: u16 = 0x0a06;
    pub(in super::super) const GETRULE: u16 = 0x0a07;
    pub(in super::super) const NEWSET: u16 = 0x0a09;
    pub(in super::super) const GETSET: u16 = 0x0a0a;
    pub(in super::super) const NEWSETELEM: u16 = 0x0a0c;
    pub(in super::super) const GETSETELEM: u16 = 0x0a0d;
    pub(in super::super) const DELSETELEM: u16 = 0x0a0e;
    pub(in super::super) const GETGEN: u16 = 0x0a10;
}

/// `NFPROTO_INET`: one table for both address families.
const INET: u8 = 1;
/// Attributes with the names of the table and of the object, in all messages.
pub(super) const TABLE: u16 = 1;
pub(super) const NAME: u16 = 2;

/// Returns the header of a message about our table.
pub(super) fn header(kind: u16, flags: u16) -> Header {
    Header {
        kind,
        flags: flags::REQUEST | flags,
        family: INET,
        resource: 0,
    }
}

/// A base chain as it should be.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) rules: Vec<Rule>,
}

/// Everything in the table except the mappings.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) sets: Vec<SetShape>,
    pub(super) chains: Vec<Chain>,
    /// The keys of the sets that do not depend on mappings.
    pub(super) fixed: BTreeMap<SetId, BTreeSet<Vec<u8>>>,
    range: PortRange,
}

/// What the kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Whether IPv6 addresses can be translated.
    pub(super) ipv6: bool,
    /// Whether rules can look up sockets (`CONFIG_NFT_SOCKET`).
    pub(super) sockets: bool,
}

impl Frame {
    pub(super) fn new(settings: &Settings, abilities: Abilities) -> Self {
        let families: &[(Family, Ip)] = if abilities.ipv6 {
            &[(Family::V4, Ip::V4), (Family::V6, Ip::V6)]
        } else {
            &[(Family::V4, Ip::V4)]
        };
        let of_family = |(family, _): &(Family, Ip)| [SetId::Ports(*family), SetId::Bound(*family)];
        let sets = families.iter().flat_map(of_family);
        let hosts = families.iter().map(|(family, _)| {
            let hosts = settings.host_addresses.iter();
            let hosts = hosts.filter(|ip| Family::of(**ip) == *family);
            (SetId::Hosts(*family), hosts.map(|ip| octets(*ip)).collect())
        });
        let excluded = settings.range.ports();
        let excluded = excluded.filter(|port| settings.excluded.contains(*port));
        let excluded = excluded.map(|port| port.get().to_be_bytes().to_vec());
        let same = (0..=u8::MAX).map(|byte| vec![byte, 0, 0, 0, byte, 0, 0, 0]);
        let others = [
            (SetId::Excluded, excluded.collect()),
            (SetId::Same, same.collect()),
        ];
        let fixed: BTreeMap<SetId, BTreeSet<Vec<u8>>> = hosts.chain(others).collect();
        let nat = |name, hook, priority, rules| Chain {
            name,
            kind: "nat",
            hook,
            priority,
            rules,
        };
        Self {
            sets: sets
                .chain(fixed.keys().copied())
                .map(SetId::shape)
                .collect(),
            chains: vec![
                nat("prerouting", 0, -101, translations(families)),
                nat("output", 3, -101, translations(families)),
                nat("postrouting", 4, 99, masquerades(families, settings)),
                Chain {
                    name: "input",
                    kind: "filter",
                    hook: 1,
                    priority: 10,
                    rules: [invalid(families), refusals(families, settings, abilities)].concat(),
                },
            ],
            fixed,
            range: settings.range,
        }
    }

    /// Returns how many elements a map must be able to hold: every port of the range in every
    /// protocol, and the mappings of an earlier range.
    pub(super) fn room_for(&self, content: &Content) -> u32 {
        let outside = content.mappings.keys();
        let outside = outside.filter(|slot| !self.range.contains(slot.host_port));
        let elements = self.range.size() * Protocol::ALL.len() + outside.count();
        u32::try_from(elements).unwrap_or(u32::MAX)
    }

    /// Adds the whole table to a transaction. Its maps can hold `size` elements.
    pub(super) fn make(&self, batch: &mut Batch, table: &str, replace: bool, size: u32) {
        let new_table = |batch: &mut Batch| {
            batch.message(header(message::NEWTABLE, flags::CREATE), |encoder| {
                encoder.text(TABLE, table);
                encoder.be32(NAME, 0);
            });
        };
        if replace {
            batch.message(header(message::DELTABLE, 0), |encoder| {
                encoder.text(TABLE, table);
            });
        }
        new_table(batch);
        for (number, set) in (1..).zip(&self.sets) {
            make_set(batch, table, set, number, size);
        }
        for chain in &self.chains {
            make_chain(batch, table, chain);
        }
        for (set, keys) in &self.fixed {
            let head = |encoder: &mut Encoder| {
                encoder.text(TABLE, table);
                encoder.text(NAME, set.name());
            };
            let header = header(message::NEWSETELEM, flags::CREATE);
            batch.list(header, head, 3, keys, |encoder, key| {
                Foreign::write(encoder, key, None);
            });
        }
    }
}

fn make_set(batch: &mut Batch, table: &str, set: &SetShape, number: u32, size: u32) {
    batch.message(header(message::NEWSET, flags::CREATE), |encoder| {
        encoder.text(TABLE, table);
        encoder.text(NAME, set.name);
        encoder.be32(3, set.flags());
        encoder.be32(4, set.key.0);
        encoder.be32(5, set.key.1);
        if let Some((datatype, length)) = set.data {
            encoder.be32(6, datatype);
            encoder.be32(7, length);
        }
        // with a known size, the hash table does not grow while elements are added or listed
        if let Some(size) = set.data.map(|_| size).or(set.size) {
            encoder.nest(9, |encoder| encoder.be32(1, size));
        }
        encoder.be32(10, number);
        if let Some(description) = set.description() {
            encoder.bytes(13, &description);
        }
    });
}

fn make_chain(batch: &mut Batch, table: &str, chain: &Chain) {
    batch.message(header(message::NEWCHAIN, flags::CREATE), |encoder| {
        encoder.text(TABLE, table);
        encoder.text(3, chain.name);
        encoder.nest(4, |encoder| {
            encoder.be32(1, chain.hook);
            encoder.be32(2, chain.priority.cast_unsigned());
        });
        // NF_ACCEPT
        encoder.be32(5, 1);
        encoder.text(7, chain.kind);
    });
    for rule in &chain.rules {
        batch.message(
            header(message::NEWRULE, flags::CREATE | flags::APPEND),
            |encoder| {
                encoder.text(TABLE, table);
                encoder.text(NAME, chain.name);
                let list = encoder.open(4);
                encoder.raw(rule.as_bytes());
                encoder.close(&list);
            },
        );
    }
}

/// Returns the DNAT rules: the maps for one address come before those for all addresses.
fn translations(families: &[(Family, Ip)]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (family, ip) in families {
        for (bound, map) in [
            (true, SetId::Bound(*family)),
            (false, SetId::Ports(*family)),
        ] {
            let rule = Rule::default()
                .version(*ip)
                .mapped(*ip, bound, map.name())
                .sent_to_any_of(*ip, SetId::Hosts(*family).name())
                .dnat(*ip);
            rules.push(rule);
        }
    }
    rules
}

fn masquerades(families: &[(Family, Ip)], settings: &Settings) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (family, ip) in families {
        let redirected = || Rule::default().version(*ip).redirected();
        let itself = redirected().between_equals(*ip, SetId::Same.name());
        let subnets = settings.neighbours.iter();
        let subnets = subnets.filter(|subnet| Family::of(subnet.network()) == *family);
        let neighbours =
            subnets.map(|subnet| redirected().within(*ip, subnet.network(), subnet.netmask()));
        let hosts = SetId::Hosts(*family).name();
        let all = settings
            .masquerade
            .then(|| redirected().begun_to(*ip, hosts));
        for rule in all.into_iter().chain([itself]).chain(neighbours) {
            for (bound, map) in [
                (true, SetId::Bound(*family)),
                (false, SetId::Ports(*family)),
            ] {
                // connections through a service of another program keep their addresses
                let rule = rule.clone().begun_to_mapped(*ip, bound, map.name());
                rules.push(rule.masquerade());
            }
        }
    }
    rules
}

fn invalid(families: &[(Family, Ip)]) -> Vec<Rule> {
    // most packets need no other rule of the chain
    let mut rules = vec![Rule::default().of_known_connection().leave()];
    for (family, ip) in families {
        for (bound, map) in [
            (true, SetId::Bound(*family)),
            (false, SetId::Ports(*family)),
        ] {
            let rule = Rule::default()
                .invalid()
                .version(*ip)
                .mapped(*ip, bound, map.name())
                .sent_to_any_of(*ip, SetId::Hosts(*family).name());
            rules.push(rule.drop());
        }
    }
    rules
}

fn refusals(families: &[(Family, Ip)], settings: &Settings, abilities: Abilities) -> Vec<Rule> {
    let datagram = || Rule::default().new_datagram_to(settings.range);
    let mut rules = vec![datagram().port_in(SetId::Excluded.name()).leave()];
    // a mapped port does not answer at loopback addresses, and the keeper's socket never answers
    for (family, ip) in families {
        let loopback = loopback(*family);
        let rule = datagram()
            .version(*ip)
            .sent_to_network(*ip, loopback.network(), loopback.netmask())
            .mapped(*ip, false, SetId::Ports(*family).name());
        rules.push(rule.refuse());
    }
    if abilities.sockets {
        rules.push(datagram().awaited().leave());
    }
    // datagrams to addresses of others, and broadcasts, are not for mapped ports
    for (family, ip) in families {
        let rule = datagram().version(*ip);
        rules.push(
            rule.sent_to_any_of(*ip, SetId::Hosts(*family).name())
                .refuse(),
        );
    }
    rules
}

/// The loopback addresses of IPv4; IPv6 has one.
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

fn loopback(family: Family) -> Subnet {
    match family {
        Family::V4 => LOOPBACK.into(),
        Family::V6 => IpAddr::from(Ipv6Addr::LOCALHOST).into(),
    }
}

/// The name of the table in transactions that are only checked.
pub(super) const REHEARSED: &str = "portmapping-check";
/// The name of our table.
pub(super) const OURS: &str = NFT_TABLE;
