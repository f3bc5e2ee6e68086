use proptest::prelude::*;

use super::*;
use crate::netlink::Messages;

fn tuple(encoder: &mut Encoder, kind: u16, from: (IpAddr, u16), to: (IpAddr, u16)) {
    let (source, destination) = ADDRESSES[usize::from(from.0.is_ipv6())];
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    encoder.nest(kind, |tuple| {
        tuple.nest(IP, |ip| {
            ip.bytes(source, &octets(from.0));
            ip.bytes(destination, &octets(to.0));
        });
        tuple.nest(PROTO, |proto| {
            proto.bytes(NUMBER, &[17]);
            proto.bytes(SOURCE_PORT, &from.1.to_be_bytes());
            proto.bytes(DESTINATION_PORT, &to.1.to_be_bytes());
        });
    });
}

/// Returns a message as the kernel sends it, for a flow from 192.0.2.9:40000 (or `fd00::9`).
fn message(sent_to: (&str, u16), answered_by: (&str, u16)) -> Vec<u8> {
    let sent_to = (sent_to.0.parse::<IpAddr>().unwrap(), sent_to.1);
    let answered_by = (answered_by.0.parse().unwrap(), answered_by.1);
    let client = if sent_to.0.is_ipv4() {
        "192.0.2.9"
    } else {
        "fd00::9"
    };
    let client = (client.parse().unwrap(), 40000);
    let mut encoder = Encoder::default();
    encoder.message(header(0x0100, Family::V4), |encoder| {
        tuple(encoder, TUPLE_ORIG, client, sent_to);
        tuple(encoder, TUPLE_REPLY, answered_by, client);
        encoder.be32(STATUS, 0x18c);
        encoder.be32(ID, 0x1234_5678);
        encoder.bytes(ZONE, &[0, 7]);
    });
    encoder.as_bytes().to_vec()
}

fn read(bytes: &[u8], protocol: Protocol) -> Option<Entry> {
    let message = Messages::new(bytes).next()?.ok()?;
    Entry::read(&message, protocol)
}

impl Entry {
    pub(in crate::conntrack) fn example(dst: &str, port: u16, by: &str, at: u16) -> Self {
        read(&message((dst, port), (by, at)), Protocol::Udp).unwrap()
    }
}

#[test]
fn reads_both_tuples() {
    for (node, pod) in [("172.30.0.1", "10.88.0.11"), ("fd30::1", "fd88::11")] {
        let entry = Entry::example(node, 20000, pod, 9053);
        let sent = (entry.dst, entry.port);
        assert_eq!(sent, (node.parse().unwrap(), 20000));
        let answered = (entry.answered_by, entry.answering_port);
        assert_eq!(answered, (pod.parse().unwrap(), 9053));
        assert!(entry.is_established);
    }
    let udp = message(("172.30.0.1", 20000), ("10.88.0.11", 9053));
    assert_eq!(read(&udp, Protocol::Sctp), None);
}

#[test]
fn deletes_by_tuple_zone_and_id() {
    let bytes = message(("172.30.0.1", 20000), ("10.88.0.11", 9053));
    let entry = read(&bytes, Protocol::Udp).unwrap();
    let (header, body) = entry.delete(Family::V4);
    let mut encoder = Encoder::default();
    encoder.message(header, body);
    let deleting = Messages::new(encoder.as_bytes()).next().unwrap().unwrap();
    assert_eq!(deleting.kind, DELETE);
    let listed = Messages::new(&bytes).next().unwrap().unwrap();
    let named: Vec<_> = listed
        .attributes()
        .filter(|attribute| [TUPLE_ORIG, ID, ZONE].contains(&attribute.kind))
        .collect();
    assert_eq!(deleting.attributes().collect::<Vec<_>>(), named);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&bytes, Protocol::Udp);
    }

    #[test]
    fn any_damaged_message_is_read_without_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep: prop::sample::Index,
    ) {
        let mut bytes = message(("172.30.0.1", 20000), ("10.88.0.11", 9053));
        for (at, with) in changes {
            *at.get_mut(&mut bytes) = with;
        }
        let _ = read(&bytes, Protocol::Udp);
        let _ = read(&bytes[..keep.index(bytes.len())], Protocol::Udp);
    }
}
