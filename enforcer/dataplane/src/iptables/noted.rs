//! The owners that iptables-nft notes, as the kernel itself tells them: a program would have it tell
//! every table first, and ports that nobody holds cannot wait for that.

use std::collections::BTreeSet;

use portmapping_shared::contract::RULE_COMMENT_PREFIX;
use portmapping_shared::{HostPort, Protocol};

use super::jumps::TABLE;
use super::notes;
use crate::netlink::{Header, Message, Socket};

/// `NFT_MSG_GETRULE` of `NFNL_SUBSYS_NFTABLES` (`linux/netfilter/nf_tables.h`).
const GET_RULE: u16 = 0x0a07;
/// `NFTA_RULE_TABLE`.
const OF_TABLE: u16 = 1;
/// `NFTA_RULE_CHAIN`.
const OF_CHAIN: u16 = 2;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const FAMILIES: [u8; 2] = [2, 10];

/// The host ports that have a note. What cannot be read is left to those who look closer.
pub(crate) fn ports(socket: &mut Socket) -> BTreeSet<(Protocol, HostPort)> {
    let mut ports = BTreeSet::new();
    for family in FAMILIES {
        let header = Header {
            kind: GET_RULE,
            family,
            ..Header::default()
        };
        let read = socket.dump(
            header,
            |encoder| encoder.text(OF_TABLE, TABLE),
            |rule| ports.extend(noted(rule).unwrap_or_default()),
        );
        if let Err(error) = read {
            tracing::debug!(%error, family, "notes of owners not read at first sight");
        }
    }
    ports
}

/// What one rule notes; None if it is no note.
fn noted(rule: &Message<'_>) -> Option<Vec<(Protocol, HostPort)>> {
    let chain = rule.attributes().find(OF_CHAIN)?;
    let protocol = notes::protocol_of(chain.text()?)?;
    // a comment is the data of a match, or of the rule, by the version of iptables: as text in both
    let prefix = RULE_COMMENT_PREFIX.as_bytes();
    let mut places = rule.payload.windows(prefix.len());
    let comment = rule
        .payload
        .get(places.position(|place| place == prefix)?..)?;
    let comment = comment.split(|byte| *byte == 0).next()?;
    let entries = notes::entries(std::str::from_utf8(comment).ok()?)?;
    let ports = entries
        .into_iter()
        .map(|(key, _)| (protocol, key.host_port));
    Some(ports.collect())
}

#[cfg(test)]
mod tests;
