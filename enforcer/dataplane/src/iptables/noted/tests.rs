use portmapping_shared::Protocol::{Sctp, Tcp};

use super::*;
use crate::netlink::{Encoder, HEADER_BYTES, Messages};

/// A rule as the kernel tells it, with a comment among its expressions.
fn rule(chain: &str, comment: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    encoder.message(Header::default(), |rule| {
        rule.text(OF_TABLE, TABLE);
        rule.text(OF_CHAIN, chain);
        rule.nest(4, |expressions| {
            expressions.nest(1, |expression| expression.bytes(3, comment));
        });
    });
    encoder.as_bytes().to_vec()
}

fn read(bytes: &[u8]) -> Option<Vec<(Protocol, HostPort)>> {
    let message = Messages::new(bytes).next().unwrap().unwrap();
    noted(&message)
}

fn port(protocol: Protocol, port: u16) -> (Protocol, HostPort) {
    (protocol, HostPort::new(port).unwrap())
}

#[test]
fn a_note_tells_its_ports_and_its_chain_their_protocol() {
    let comment = b"portmapping:20000=uid-a 20001@10.0.0.1=uid-b\0\0\0\0";
    assert_eq!(
        read(&rule("PORTMAPPING-UID-TCP-20000", comment)),
        Some(vec![port(Tcp, 20000), port(Tcp, 20001)])
    );
    assert_eq!(
        read(&rule("PORTMAPPING-UID-SCTP", comment)),
        Some(vec![port(Sctp, 20000), port(Sctp, 20001)])
    );
}

#[test]
fn what_is_no_note_is_none_whatever_its_comment() {
    let note = b"portmapping:20000=uid-a\0";
    for chain in [
        "PREROUTING",
        "PORTMAPPING-TCP-20000-20021",
        "PORTMAPPING-UID-",
        "PORTMAPPING-UID-XYZ-1",
    ] {
        assert_eq!(read(&rule(chain, note)), None, "{chain}");
    }
    let ours = "PORTMAPPING-UID-TCP-20000";
    for comment in [
        b"".as_slice(),
        b"portmapping:",
        b"portmapping:70000=uid-a",
        b"portmapping:20000",
        b"portmapping:20000=uid-a 1",
        b"portmapping:\xff=uid-a",
        b"something else",
    ] {
        assert_eq!(read(&rule(ours, comment)), None, "{comment:?}");
    }
}

#[test]
fn no_byte_too_few_makes_it_panic() {
    let whole = rule("PORTMAPPING-UID-TCP-20000", b"portmapping:20000=uid-a\0");
    for length in HEADER_BYTES..whole.len() {
        let mut cut = whole[..length].to_vec();
        cut[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
        let _ = read(&cut);
    }
}
