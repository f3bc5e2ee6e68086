//! Finds chains of other tables that drop forwarded packets, such as those of firewalld.
//!
//! A packet passes the chains of all tables at a hook, and one that drops it is enough. So no rule of ours
//! can accept it, and the chain is named instead.

use std::collections::BTreeSet;

use crate::netlink::{Attributes, Header, Message, NetlinkError, Options, Socket};

use super::expression::{CT_STATUS, STATUS_DNAT};
use super::frame::{NAME, OURS, TABLE, header, message};

/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_CMP_NEQ`.
const NOT_EQUAL: u32 = 1;

/// A chain of a table of one family (`NFPROTO_*`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    drops: bool,
}

/// Returns the chains that drop the packets of translated connections unless one of their rules accepts
/// them by something else, as `inet TABLE CHAIN`. Those of iptables are left out: their rules are read by its
/// own programs.
pub(crate) fn forward_chains() -> Result<BTreeSet<String>, NetlinkError> {
    let mut socket = Socket::open(Options::default())?;
    let mut chains = BTreeSet::new();
    let any = |kind, family| Header {
        family,
        ..header(kind, 0)
    };
    listed(socket.dump(
        any(message::GETCHAIN, 0),
        |_| {},
        |message| {
            chains.extend(Chain::read(message));
        },
    ))?;
    let mut found = BTreeSet::new();
    for chain in chains {
        let Some(family) = chain.family_name() else {
            continue;
        };
        let mut effect = None;
        let which = |encoder: &mut crate::netlink::Encoder| {
            encoder.text(TABLE, &chain.table);
            encoder.text(NAME, &chain.name);
        };
        listed(
            socket.dump(any(message::GETRULE, chain.family), which, |rule| {
                let text = |kind| rule.attributes().find(kind).and_then(|it| it.text());
                // kernels may list the rules of other chains as well
                if text(TABLE) == Some(&chain.table) && text(NAME) == Some(&chain.name) {
                    let expressions = rule.attributes().find(4);
                    effect = effect.or(effect_of(
                        expressions.map(|it| it.attributes()).unwrap_or_default(),
                    ));
                }
            }),
        )?;
        if effect.unwrap_or(if chain.drops { DROP } else { ACCEPT }) == DROP {
            found.insert(format!("{family} {} {}", chain.table, chain.name));
        }
    }
    Ok(found)
}

/// A list during which something changed is good enough: the next one follows.
fn listed(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match outcome {
        Err(NetlinkError::Interrupted) => Ok(()),
        outcome => outcome,
    }
}

impl Chain {
    /// Reads a chain at the hook of forwarded packets; None for any other.
    fn read(message: &Message<'_>) -> Option<Self> {
        let find = |kind| message.attributes().find(kind);
        let hook = find(4)?.attributes().find(1)?.be32()?;
        let chain = Self {
            family: *message.payload.first()?,
            table: find(TABLE)?.text()?.to_owned(),
            name: find(3)?.text()?.to_owned(),
            drops: find(5).and_then(|policy| policy.be32()) == Some(DROP),
        };
        let of_iptables = chain.family != 1 && chain.name == "FORWARD";
        (hook == FORWARD && chain.table != OURS && !of_iptables).then_some(chain)
    }

    fn family_name(&self) -> Option<&'static str> {
        match self.family {
            1 => Some("inet"),
            2 => Some("ip"),
            10 => Some("ip6"),
            _ => None,
        }
    }
}

/// Returns what a rule does to every packet of a new translated connection: [`DROP`], [`ACCEPT`], or None if
/// it depends on something else.
fn effect_of(expressions: Attributes<'_>) -> Option<u32> {
    let mut effect = None;
    let mut conditions = 0;
    let mut translated = false;
    for expression in expressions {
        let parts = expression.attributes();
        let name = parts.clone().find(1)?.text()?;
        let data = parts
            .find(2)
            .map(|data| data.attributes())
            .unwrap_or_default();
        let number = |kind| data.clone().find(kind).and_then(|number| number.be32());
        match name {
            "counter" | "log" => {}
            "reject" => effect = Some(DROP),
            "immediate" => effect = verdict(&data),
            // as `ct status dnat` is written: the status, its bit, and whether it is set
            "ct" if number(2) == Some(CT_STATUS) => conditions += 1,
            "bitwise" => {
                let mask = data.clone().find(4)?.attributes().find(1)?.value;
                translated |= mask == STATUS_DNAT.to_ne_bytes();
                conditions += 1;
            }
            "cmp" if number(2) == Some(NOT_EQUAL) => conditions += 1,
            _ => return None,
        }
    }
    effect.filter(|_| conditions == 0 || (conditions == 3 && translated))
}

/// Returns the verdict that an `immediate` expression gives, if it is one that ends the way of a packet.
fn verdict(data: &Attributes<'_>) -> Option<u32> {
    let verdict = data.clone().find(2)?.attributes().find(2)?;
    let code = verdict.attributes().find(1)?.be32()?;
    (code == DROP || code == ACCEPT).then_some(code)
}
