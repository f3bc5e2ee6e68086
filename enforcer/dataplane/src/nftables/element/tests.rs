use proptest::prelude::*;

use super::*;
use crate::netlink::Attributes;

fn mapping(host_ip: Option<&str>, pod_ip: &str) -> Mapping {
    Mapping {
        protocol: Protocol::Sctp,
        host_port: HostPort::new(20_007).unwrap(),
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        pod_ip: pod_ip.parse().unwrap(),
        container_port: ContainerPort::new(80).unwrap(),
        owner: "5f6c0a4e-9d1c-4f6b-8a57-0c3f6f1f2a11".parse().unwrap(),
    }
}

fn written(mapping: &Mapping) -> Vec<u8> {
    let mut encoder = Encoder::default();
    write_mapping(&mut encoder, mapping);
    encoder.as_bytes().to_vec()
}

fn listed(bytes: &[u8]) -> Listed<'_> {
    Listed::read(Attributes::new(bytes).next().unwrap())
}

#[test]
fn written_mappings_are_read_back() {
    for (host_ip, pod_ip) in [
        (None, "10.244.1.7"),
        (Some("192.0.2.1"), "10.244.1.7"),
        (None, "fd00:10:244:1::7"),
        (Some("2001:db8::1"), "fd00:10:244:1::7"),
    ] {
        let mapping = mapping(host_ip, pod_ip);
        let bytes = written(&mapping);
        let listed = listed(&bytes);
        let slot = Slot::of(&mapping);
        let shape = slot.set().shape();
        assert_eq!(listed.key.len(), shape.key.1 as usize);
        assert_eq!(listed.data.len(), shape.data.unwrap().1 as usize);
        assert_eq!(Slot::read(slot.set(), listed.key), Some(slot));
        let owner = listed.owner().unwrap();
        assert_eq!(slot.mapping(listed.data, owner), Some(mapping));
        assert!(!listed.odd);
    }
}

#[test]
fn bytes_are_the_same_as_those_of_nft() {
    let bytes = written(&mapping(Some("192.0.2.1"), "10.244.1.7"));
    let listed = listed(&bytes);
    assert_eq!(listed.key, [132, 0, 0, 0, 0x4e, 0x27, 0, 0, 192, 0, 2, 1]);
    assert_eq!(listed.data, [10, 244, 1, 7, 0, 80, 0, 0]);
    let comment = b"portmapping:5f6c0a4e-9d1c-4f6b-8a57-0c3f6f1f2a11\0";
    let length = u8::try_from(comment.len()).unwrap();
    assert_eq!(listed.userdata, [&[0, length][..], comment].concat());
}

#[test]
fn longest_uid_fits() {
    let mut mapping = mapping(None, "10.244.1.7");
    mapping.owner = "u".repeat(63).parse().unwrap();
    let bytes = written(&mapping);
    assert_eq!(listed(&bytes).owner(), Some(mapping.owner));
}

#[test]
fn own_elements_are_recognized_by_their_comment_alone() {
    let owner = |userdata: &[u8]| {
        let listed = Listed {
            userdata,
            ..Listed::default()
        };
        listed.owner().map(|owner| owner.to_string())
    };
    assert_eq!(owner(b"\0\x11portmapping:uid7\0"), Some("uid7".to_owned()));
    // other data comes before it, as newer tools may write it
    assert_eq!(
        owner(b"\x01\x02xx\0\x11portmapping:uid7\0"),
        Some("uid7".to_owned())
    );
    for foreign in [
        &b""[..],
        b"\0",
        b"\0\x05mine\0",
        b"\0\x0dportmapping:\0",
        b"\0\x12portmapping:uid 7\0",
        b"\0\xffportmapping:uid7\0",
        b"\x01\x11portmapping:uid7\0",
    ] {
        assert_eq!(owner(foreign), None, "{foreign:?}");
    }
}

#[test]
fn keys_that_are_no_mapping_are_none() {
    let read = |key: &[u8]| Slot::read(SetId::Ports(Family::V4), key);
    assert!(read(&[6, 0, 0, 0, 0, 1, 0, 0]).is_some());
    for key in [
        &[47, 0, 0, 0, 0, 1, 0, 0][..],
        &[6, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 0, 1, 0, 1, 0, 0],
        &[6, 0, 0, 0, 0, 1, 0],
    ] {
        assert_eq!(read(key), None, "{key:?}");
    }
}

#[test]
fn the_element_for_all_other_keys_is_odd() {
    let mut encoder = Encoder::default();
    encoder.nest(LIST_ELEM, |encoder| {
        encoder.be32(FLAGS, 2);
        encoder.nest(DATA, |encoder| encoder.bytes(DATA_VALUE, &[0; 8]));
    });
    assert!(listed(encoder.as_bytes()).odd);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let sets = [Family::V4, Family::V6].into_iter().flat_map(|family| {
            [SetId::Ports(family), SetId::Bound(family)]
        });
        for set in sets.chain([SetId::Excluded, SetId::Same]) {
            for attribute in Attributes::new(&bytes) {
                let listed = Listed::read(attribute);
                let owner = listed.owner();
                if let (Some(slot), Some(owner)) = (Slot::read(set, listed.key), owner) {
                    let _ = slot.mapping(listed.data, owner);
                }
            }
            let _ = Slot::read(set, &bytes);
            let userdata = Listed { userdata: &bytes, ..Listed::default() };
            let _ = userdata.owner();
        }
    }

    #[test]
    fn any_written_key_and_data_are_read_back(
        number in prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)],
        host in 1u16.., container in 1u16.., pod in any::<[u8; 16]>(), bound in any::<Option<[u8; 16]>>(),
    ) {
        let mapping = Mapping {
            protocol: number,
            host_port: HostPort::new(host).unwrap(),
            host_ip: bound.map(IpAddr::from),
            pod_ip: pod.into(),
            container_port: ContainerPort::new(container).unwrap(),
            owner: "a".parse().unwrap(),
        };
        let bytes = written(&mapping);
        let listed = listed(&bytes);
        let slot = Slot::read(Slot::of(&mapping).set(), listed.key).unwrap();
        prop_assert_eq!(slot.mapping(listed.data, listed.owner().unwrap()), Some(mapping));
    }
}
