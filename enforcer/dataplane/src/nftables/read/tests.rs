use proptest::collection::vec;
use proptest::prelude::*;

use super::super::element::write_mapping;
use super::super::frame::Abilities;
use super::*;
use crate::family::Family;
use crate::netlink::Encoder;
use crate::settings::Settings;

fn frame() -> Frame {
    let abilities = Abilities {
        ipv6: true,
        sockets: true,
    };
    Frame::new(&Settings::new("20000-29999".parse().unwrap()), abilities)
}

/// Reads the table from a kernel that answers every request with the same message.
fn read(payload: &[u8]) -> Content {
    let message = Message {
        kind: message::GETSETELEM,
        flags: 0,
        sequence: 1,
        port: 0,
        payload,
    };
    let (frame, before) = (frame(), Content::default());
    let mut content = Content::default();
    for set in &frame.sets {
        let _ = is_shape(set, &message.attributes());
        for listed in elements(&message) {
            match mapping(set.id, &listed) {
                Some(mapping) => _ = content.mappings.insert(Slot::of(&mapping), mapping),
                None => take_other(set.id, &listed, &before, &mut content),
            }
        }
    }
    for chain in &frame.chains {
        let _ = is_chain(chain, &message.attributes());
        for rule in &chain.rules {
            assert!(!rule.is(message.attributes()) || rule.as_bytes().is_empty());
        }
    }
    let _ = size(&message.attributes());
    let _ = frame.room_for(&content);
    content
}

/// Returns a dump of one mapping per pod address.
fn dump(pods: &[[u8; 4]]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    encoder.nest(3, |encoder| {
        for (port, pod) in (20000..).zip(pods) {
            write_mapping(
                encoder,
                &portmapping_shared::Mapping {
                    protocol: portmapping_shared::Protocol::Tcp,
                    host_port: portmapping_shared::HostPort::new(port).unwrap(),
                    host_ip: None,
                    pod_ip: (*pod).into(),
                    container_port: portmapping_shared::ContainerPort::new(80).unwrap(),
                    owner: "5f6c0a4e".parse().unwrap(),
                },
            );
        }
    });
    [&[0; 4], encoder.as_bytes()].concat()
}

#[test]
fn dump_is_read() {
    let content = read(&dump(&[[10, 244, 1, 7], [10, 244, 1, 8]]));
    let is_one = |slot: &Slot| slot.set() == SetId::Ports(Family::V4);
    assert_eq!(
        content.mappings.keys().filter(|slot| is_one(slot)).count(),
        2
    );
}

proptest! {
    #[test]
    fn any_answer_is_read_without_panic(payload in vec(any::<u8>(), 0..600)) {
        read(&payload);
    }

    #[test]
    fn damaged_dump_is_read_without_panic(
        pods in vec(any::<[u8; 4]>(), 0..6),
        spoilt in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut payload = dump(&pods);
        for (at, with) in spoilt {
            *at.get_mut(&mut payload) = with;
        }
        let end = cut.index(payload.len() + 1);
        read(&payload);
        read(&payload[..end]);
    }
}
