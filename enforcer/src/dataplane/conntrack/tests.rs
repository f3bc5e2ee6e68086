use proptest::prelude::*;

use super::*;

const LINE: &str = "udp      17 29 src=172.30.0.2 dst=172.30.0.1 sport=40000 dport=20000 [UNREPLIED] src=10.88.0.11 dst=172.30.0.2 sport=9053 dport=40000 mark=0 use=1";

fn mapping(port: u16, pod: &str) -> Mapping {
    Mapping {
        protocol: Protocol::Udp,
        host_port: portmapping_shared::HostPort::new(port).unwrap(),
        host_ip: None,
        pod_ip: pod.parse().unwrap(),
        container_port: portmapping_shared::ContainerPort::new(9053).unwrap(),
        owner: "uid".parse().unwrap(),
    }
}

fn contradicts(line: &str, removed: &[&Mapping], created: &[&Mapping], local: bool) -> bool {
    let change = Change {
        removed: removed.to_vec(),
        created: created.to_vec(),
    };
    change.contradicts(&Entry::parse(line).unwrap(), |_| local)
}

#[test]
fn reads_both_tuples_of_an_entry() {
    let entry = Entry::parse(LINE).unwrap();
    assert_eq!(
        entry,
        Entry {
            dst: "172.30.0.1".parse().unwrap(),
            port: 20000,
            answered_by: "10.88.0.11".parse().unwrap(),
            answering_port: 9053,
        }
    );
    assert_eq!(
        Entry::parse("udp 17 29 src=172.30.0.2 dst=172.30.0.1 sport=1 dport=2"),
        None
    );
}

#[test]
fn flow_to_the_pod_that_lost_the_port_is_stale() {
    let (pod1, pod2) = (mapping(20000, "10.88.0.11"), mapping(20000, "10.88.0.12"));
    assert!(contradicts(LINE, &[&pod1], &[], false));
    assert!(contradicts(LINE, &[&pod1], &[&pod2], true));
    assert!(!contradicts(
        LINE,
        &[&mapping(20001, "10.88.0.11")],
        &[],
        true
    ));
    assert!(!contradicts(LINE, &[&pod2], &[], true));
    // removed and put back, as a repair does
    assert!(!contradicts(LINE, &[&pod1], &[&pod1], true));
}

#[test]
fn flow_past_a_new_mapping_is_stale_where_the_node_is_its_destination() {
    let unmapped = LINE
        .replace("src=10.88.0.11", "src=172.30.0.1")
        .replace("sport=9053", "sport=20000");
    let new = mapping(20000, "10.88.0.11");
    assert!(contradicts(&unmapped, &[], &[&new], true));
    assert!(!contradicts(&unmapped, &[], &[&new], false));
    assert!(!contradicts(LINE, &[], &[&new], true));
    let host_ip = |ip: &str| Mapping {
        host_ip: Some(ip.parse().unwrap()),
        ..new.clone()
    };
    assert!(contradicts(&unmapped, &[], &[&host_ip("172.30.0.1")], true));
    assert!(!contradicts(
        &unmapped,
        &[],
        &[&host_ip("172.30.0.3")],
        true
    ));
}

#[test]
fn own_addresses_are_told_from_others() {
    assert!(is_local([127, 0, 0, 1].into()));
    assert!(!is_local([192, 0, 2, 1].into()));
}

proptest! {
    #[test]
    fn no_line_makes_it_panic(line in "(src=|dst=|sport=|dport=|[0-9.:a-f]{0,9}| |é){0,40}") {
        let _ = Entry::parse(&line);
    }
}
