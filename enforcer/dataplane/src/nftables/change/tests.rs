use portmapping_shared::{ContainerPort, HostPort, Protocol};

use super::*;
use crate::nftables::element::key_bytes;
use crate::nftables::frame::Abilities;
use crate::settings::Settings;

fn frame() -> Frame {
    let abilities = Abilities {
        ipv6: true,
        sockets: true,
    };
    Frame::new(&Settings::new("20000-29999".parse().unwrap()), abilities)
}

fn mapping(port: u16, pod: u8) -> Mapping {
    Mapping {
        protocol: Protocol::Tcp,
        host_port: HostPort::new(port).unwrap(),
        host_ip: None,
        pod_ip: [10, 0, 0, pod].into(),
        container_port: ContainerPort::new(80).unwrap(),
        owner: format!("uid{pod}").parse().unwrap(),
    }
}

fn whole(mappings: &[Mapping]) -> Content {
    let content = Content {
        frame: FrameState::Whole,
        mappings: mappings.iter().map(|m| (Slot::of(m), m.clone())).collect(),
        ..Content::default()
    };
    assert!(content.is_intact());
    content
}

fn plan(to_remove: &[Mapping], to_create: &[Mapping]) -> Plan {
    Plan {
        unchanged: 0,
        to_remove: to_remove.to_vec(),
        to_create: to_create.to_vec(),
    }
}

/// Returns the content after a plan.
fn done(content: &Content, plan: &Plan) -> Content {
    let mut next = content.clone();
    let change = Change::new(content, &frame(), plan, true).unwrap();
    change.accept(&mut next);
    next
}

#[test]
fn plan_that_changes_nothing_sends_nothing() {
    let content = whole(&[mapping(20_000, 1)]);
    let fulfilled = plan(&[mapping(20_001, 2)], &[mapping(20_000, 1)]);
    let change = Change::new(&content, &frame(), &fulfilled, true).unwrap();
    assert!(change.batch.is_empty());
    let nothing = Change::new(&Content::default(), &frame(), &Plan::default(), true).unwrap();
    assert!(nothing.batch.is_empty(), "no table without mappings");
}

#[test]
fn another_mapping_in_the_slot_is_not_removed_but_replaced() {
    let content = whole(&[mapping(20_000, 1)]);
    let same = done(&content, &plan(&[mapping(20_000, 2)], &[]));
    assert_eq!(same, content, "it is not the one to be removed");
    let replaced = done(&content, &plan(&[], &[mapping(20_000, 2)]));
    let mappings: Vec<_> = replaced.mappings.into_values().collect();
    assert_eq!(mappings, [mapping(20_000, 2)]);
}

#[test]
fn damaged_frame_is_made_again_with_all_remaining_elements() {
    let mut content = whole(&[mapping(20_000, 1), mapping(20_001, 2)]);
    content.frame = FrameState::Damaged;
    content.usurped.insert((SetId::Excluded, vec![0, 1]));
    let next = done(
        &content,
        &plan(&[mapping(20_000, 1)], &[mapping(20_002, 3)]),
    );
    assert!(next.is_intact());
    let ports: Vec<u16> = next
        .mappings
        .keys()
        .map(|slot| slot.host_port.get())
        .collect();
    assert_eq!(ports, [20_001, 20_002]);
}

#[test]
fn foreign_slot_is_an_error_that_names_the_mapping() {
    let mut content = whole(&[]);
    let slot = Slot::of(&mapping(20_000, 1));
    let foreign = Foreign {
        data: vec![0; 8],
        userdata: Vec::new(),
    };
    content
        .foreign
        .insert((slot.set(), key_bytes(&slot)), foreign);
    let wanted = plan(&[], &[mapping(20_001, 1), mapping(20_000, 1)]);
    let error = Change::new(&content, &frame(), &wanted, true).unwrap_err();
    assert!(
        matches!(&error, DataplaneError::ForeignElement { mapping: named } if **named == mapping(20_000, 1))
    );
    assert!(error.to_string().contains("nft list table"), "{error}");
}

#[test]
fn size_of_a_small_change_does_not_depend_on_existing_mappings() {
    let many: Vec<Mapping> = (20_000..29_000).map(|port| mapping(port, 1)).collect();
    let wanted = plan(&[mapping(20_000, 1)], &[mapping(29_500, 1)]);
    let messages = |content: &Content| {
        let change = Change::new(content, &frame(), &wanted, true).unwrap();
        change.batch.bytes()
    };
    assert_eq!(messages(&whole(&many)), messages(&whole(&many[..2])));
}
