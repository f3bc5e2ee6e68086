use super::*;

const NODE: &str = "172.30.0.1";

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

/// Returns a client's flow to port 20000 of the node, which the first pod answers.
fn flow() -> Entry {
    Entry::example("172.30.0.1", 20000, "10.88.0.11", 9053)
}

fn contradicts(entry: &Entry, removed: &[&Mapping], created: &[&Mapping], local: bool) -> bool {
    let ever = BTreeSet::from([NODE.parse().unwrap()]);
    let current = if local { ever.clone() } else { BTreeSet::new() };
    let change = ChangedMappings::new(entry.protocol, removed, created, [].iter());
    change.contradicts(entry, &current, &ever)
}

#[test]
fn flow_to_the_pod_that_lost_the_port_is_stale() {
    let (pod1, pod2) = (mapping(20000, "10.88.0.11"), mapping(20000, "10.88.0.12"));
    assert!(contradicts(&flow(), &[&pod1], &[], false));
    assert!(contradicts(&flow(), &[&pod1], &[&pod2], true));
    assert!(!contradicts(
        &flow(),
        &[&mapping(20001, "10.88.0.11")],
        &[],
        true
    ));
    assert!(!contradicts(&flow(), &[&pod2], &[], true));
    // removed and created again, as a repair does
    assert!(!contradicts(&flow(), &[&pod1], &[&pod1], true));
}

#[test]
fn flow_that_bypasses_a_new_mapping_is_stale_if_the_node_is_its_destination() {
    let unmapped = Entry::example("172.30.0.1", 20000, "172.30.0.1", 20000);
    let new = mapping(20000, "10.88.0.11");
    assert!(contradicts(&unmapped, &[], &[&new], true));
    assert!(!contradicts(&unmapped, &[], &[&new], false));
    assert!(!contradicts(&flow(), &[], &[&new], true));
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
fn translated_flow_to_a_port_without_mapping_is_stale() {
    let pod2 = mapping(20000, "10.88.0.12");
    let unmapped = BTreeSet::from([(pod2.protocol, pod2.host_port)]);
    let contradicts = |entry: &Entry, created: &[&Mapping], to: &str| {
        let ever = BTreeSet::from([to.parse().unwrap()]);
        let change = ChangedMappings::new(Protocol::Udp, &[], created, unmapped.iter());
        change.contradicts(entry, &BTreeSet::new(), &ever)
    };
    assert!(contradicts(&flow(), &[], NODE));
    assert!(!contradicts(&flow(), &[], "172.30.0.2"));
    let direct = Entry::example("172.30.0.1", 20000, "172.30.0.1", 20000);
    assert!(!contradicts(&direct, &[], NODE));
    let again = Entry::example("172.30.0.1", 20000, "10.88.0.12", 9053);
    assert!(!contradicts(&again, &[&pod2], NODE));
    // a mapping that is made later replaces it
    let mut left = Left {
        unmapped,
        ..Left::default()
    };
    left.add([], [&pod2]);
    assert!(left.unmapped.is_empty());
}

#[test]
fn only_an_incomplete_handshake_ends_with_its_mapping() {
    let tcp = |pod: &str| Mapping {
        protocol: Protocol::Tcp,
        ..mapping(20000, pod)
    };
    let (pod1, pod2) = (tcp("10.88.0.11"), tcp("10.88.0.12"));
    let connection = |is_established| {
        let mut entry = flow();
        entry.protocol = Protocol::Tcp;
        entry.is_established = is_established;
        entry
    };
    assert!(contradicts(&connection(false), &[&pod1], &[], true));
    assert!(!contradicts(&connection(true), &[&pod1], &[], true));
    assert!(!contradicts(&connection(false), &[&pod1], &[&pod1], true));
    assert!(!contradicts(&connection(false), &[], &[&pod2], true));
}

#[test]
fn flow_to_an_address_that_was_never_a_host_address_stays() {
    let service = Entry::example("10.96.0.7", 20000, "10.88.0.11", 9053);
    let pod1 = mapping(20000, "10.88.0.11");
    assert!(!contradicts(&service, &[&pod1], &[], true));
    let elsewhere = Entry::example("10.96.0.7", 20000, "10.88.0.12", 9053);
    assert!(!contradicts(&elsewhere, &[], &[&pod1], true));
}

#[test]
fn mapping_that_comes_back_before_the_clearing_keeps_its_flows() {
    let (pod1, pod2) = (mapping(20000, "10.88.0.11"), mapping(20000, "10.88.0.12"));
    let mut left = Left::default();
    left.add([&pod1], [&pod2]);
    left.add([&pod2], [&pod1]);
    assert_eq!(left.removed, BTreeSet::from([pod2.clone()]));
    assert_eq!(left.created, BTreeSet::from([pod1]));
    left.add([], [&pod2]);
    assert!(left.removed.is_empty());
    assert_eq!(left.take().created.len(), 2);
    assert!(left.is_empty());
}

#[test]
fn what_failed_is_tried_again_unless_a_later_change_undoes_it() {
    let [a, b, c] = [20000, 20001, 20002].map(|port| mapping(port, "10.88.0.11"));
    let flows = StaleFlows::default();
    flows.record([&a, &b], []);
    let failed = flows.0.left.lock().take();
    // b comes back while the clearing fails
    flows.record([&c], [&b]);
    let at = Instant::now() + Duration::from_mins(1);
    flows.0.left.lock().put_back(failed, at);
    assert!(!flows.is_due(), "tried again at once");
    let mut left = flows.0.left.lock();
    assert_eq!(left.removed, [a, c].into());
    assert_eq!(left.created, [b].into());
    left.retry_at = Some(Instant::now());
    drop(left);
    assert!(flows.is_due());
}

#[test]
fn a_kernel_that_refuses_for_good_does_not_fill_the_memory() {
    let flows = StaleFlows::default();
    let all: Vec<Mapping> = (0..2 * MOST_WAITING)
        .filter_map(|n| u16::try_from(n + 1).ok())
        .map(|port| mapping(port, "10.88.0.11"))
        .collect();
    flows.record(all.iter().take(5), all.iter().skip(5));
    let failed = flows.0.left.lock().take();
    flows.0.left.lock().put_back(failed, Instant::now());
    let left = flows.0.left.lock();
    assert_eq!((left.removed.len(), left.created.len()), (5, 0));
}
