//! Which addresses a pod has, and which pod owns an address.

use super::*;

#[test]
fn a_pod_keeps_its_host_ports_when_its_address_changes() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let ports = node.host_ports("a");
    let mut moved = echoed(&node, facts("a", Some("10.244.0.3")));
    moved.pod_ips = vec!["10.244.0.3".parse().unwrap()];
    node.applied(moved).settle();
    assert_eq!(node.host_ports("a"), ports);
    let to: IpAddr = "10.244.0.3".parse().unwrap();
    assert!(
        node.state
            .desired()
            .iter()
            .all(|mapping| mapping.pod_ip == to)
    );
}

#[test]
fn the_newer_of_two_pods_with_one_address_owns_it() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("old", Some("10.244.0.2"))).settle();
    node.applied(facts("new", Some("10.244.0.2"))).settle();
    let owners: BTreeSet<String> = node
        .state
        .desired()
        .iter()
        .map(|mapping| mapping.owner.to_string())
        .collect();
    assert_eq!(owners, BTreeSet::from(["uid-new".to_owned()]));
}

#[test]
fn a_sandbox_maps_its_pod_before_the_api_names_an_address() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", None)).settle();
    node.up(sandbox("a", "s1", "10.244.0.2", 1));
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    let record = node.last().clone();
    assert!(record.condition.unwrap().status);
    assert!(
        record
            .annotation
            .unwrap()
            .contains(r#""podIP":"10.244.0.2""#)
    );
    let status = node.state.status();
    let s1: SandboxId = "s1".parse().unwrap();
    assert_eq!(status.pods[0].source, AddressSource::Sandbox(s1));
    // the API catches up: nothing is left to write
    let mut late = node.shown("a");
    late.pod_ips = vec!["10.244.0.2".parse().unwrap()];
    node.applied(late).settle();
    assert_eq!(node.written.len(), 1);
}

#[test]
fn a_sandbox_seen_before_its_pod_is_used_when_the_pod_is_seen() {
    let mut node = Node::new("20000-29999");
    node.up(sandbox("a", "s1", "10.244.0.2", 1));
    assert!(node.state.desired().is_empty());
    node.applied(facts("a", None)).settle();
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
}

#[test]
fn an_ended_sandbox_unmaps_its_pod_even_if_the_api_names_its_address() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.up(sandbox("a", "s1", "10.244.0.2", 1)).down("s1");
    assert!(node.state.desired().is_empty());
    let again = node.shown("a");
    node.applied(again.clone()).settle();
    assert!(node.state.desired().is_empty(), "the API is late");
    assert_eq!(
        node.host_ports("a").len(),
        2,
        "the pod exists and keeps its lease"
    );
    // another address in the API belongs to a sandbox that was not seen
    let mut moved = again;
    moved.pod_ips = vec!["10.244.0.3".parse().unwrap()];
    node.applied(moved).settle();
    assert_eq!(node.leads_to("a"), ["10.244.0.3".to_owned()].into());
}

#[test]
fn an_ended_sandbox_is_remembered_until_the_pod_is_seen() {
    let mut node = Node::new("20000-29999");
    node.up(sandbox("a", "s1", "10.244.0.2", 1)).down("s1");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    assert!(node.state.desired().is_empty());
    node.up(sandbox("a", "s2", "10.244.0.2", 2));
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    // many pods that the API never shows must not be remembered for ever
    for n in 0..2000 {
        let (name, id) = (format!("n{n}"), format!("x{n}"));
        node.up(sandbox(&name, &id, "10.244.9.9", 3)).down(&id);
    }
    node.applied(facts("n0", Some("10.244.9.9"))).settle();
    assert_eq!(node.leads_to("n0"), ["10.244.9.9".to_owned()].into());
}

#[test]
fn a_pod_keeps_its_host_ports_in_a_new_sandbox() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let ports = node.host_ports("a");
    // the new result may come before the old one is removed
    node.up(sandbox("a", "s1", "10.244.0.2", 1));
    node.up(sandbox("a", "s2", "10.244.0.3", 2));
    assert_eq!(node.leads_to("a"), ["10.244.0.3".to_owned()].into());
    node.down("s1");
    assert_eq!(node.leads_to("a"), ["10.244.0.3".to_owned()].into());
    assert_eq!(node.host_ports("a"), ports);
    assert!(
        node.last()
            .annotation
            .as_ref()
            .unwrap()
            .contains("10.244.0.3")
    );
    // an older result that is found later stays older
    node.up(sandbox("a", "s0", "10.244.0.9", 0));
    assert_eq!(node.leads_to("a"), ["10.244.0.3".to_owned()].into());
    // written in the same second: the one that came last
    node.up(sandbox("a", "s3", "10.244.0.4", 2));
    assert_eq!(node.leads_to("a"), ["10.244.0.4".to_owned()].into());
    assert!(node.notes(EventKind::ForgedResult).is_empty());
}

#[test]
fn the_newest_sandbox_owns_an_address_whatever_the_api_says() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("old", Some("10.244.0.2"))).settle();
    node.applied(facts("new", None));
    node.up(sandbox("new", "s2", "10.244.0.2", 2));
    assert_eq!(node.leads_to("new"), ["10.244.0.2".to_owned()].into());
    assert!(node.leads_to("old").is_empty());
    // what the API says later about the old one changes nothing
    let late = node.shown("old");
    node.applied(late).settle();
    assert!(node.leads_to("old").is_empty());
    // an older sandbox changes nothing either
    node.up(sandbox("old", "s1", "10.244.0.2", 1));
    assert!(node.leads_to("old").is_empty());
    node.down("s2");
    assert_eq!(node.leads_to("old"), ["10.244.0.2".to_owned()].into());
}

#[test]
fn a_sandbox_of_an_unknown_pod_takes_the_address_from_its_old_owner() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("old", Some("10.244.0.2"))).settle();
    let later = node.now.as_secs() + 1;
    node.up(sandbox("new", "s2", "10.244.0.2", later));
    assert!(node.state.desired().is_empty());
}

#[test]
fn a_list_ends_missing_sandboxes_but_no_pod_without_one() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("seen", Some("10.244.0.2")));
    node.applied(facts("unseen", Some("10.244.0.3")));
    node.up(sandbox("seen", "s1", "10.244.0.2", 1));
    let (now, one) = (node.now, sandbox("seen", "s1", "10.244.0.2", 1));
    node.state.sandboxes_listed(now, vec![one]);
    node.settle();
    assert_eq!(
        (node.leads_to("seen").len(), node.leads_to("unseen").len()),
        (1, 1)
    );
    node.state.sandboxes_listed(now, Vec::new());
    node.settle();
    assert_eq!(
        (node.leads_to("seen").len(), node.leads_to("unseen").len()),
        (0, 1)
    );
    // two results of one pod: the order of the list has no meaning
    let (newer, older) = (
        sandbox("seen", "s3", "10.244.0.5", 3),
        sandbox("seen", "s2", "10.244.0.4", 2),
    );
    node.state.sandboxes_listed(now, vec![newer, older]);
    node.settle();
    assert_eq!(node.leads_to("seen"), ["10.244.0.5".to_owned()].into());
}

#[test]
fn a_sandbox_that_belongs_to_another_pod_now_is_removed_from_its_old_pod() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.applied(facts("b", None));
    node.up(sandbox("a", "s1", "10.244.0.2", 1));
    node.up(sandbox("b", "s1", "::ffff:10.244.0.2", 2));
    assert!(node.leads_to("a").is_empty());
    assert_eq!(node.leads_to("b"), ["10.244.0.2".to_owned()].into());
}

#[test]
fn a_pod_on_the_host_network_claims_no_address() {
    let mut node = Node::new("20000-29999");
    let mut host = facts("host", Some("10.0.0.11"));
    host.spec.host_network = true;
    node.applied(facts("a", Some("10.0.0.11")))
        .applied(host)
        .settle();
    assert_eq!(node.leads_to("a").len(), 1);
}

/// A sandbox whose interface has two IPv4 addresses and one of IPv6.
fn with_two_of_a_family(name: &str) -> Sandbox {
    let ips = ["10.244.0.2", "10.244.0.3", "fd00:244::2"];
    Sandbox {
        ips: ips.map(|ip| ip.parse().unwrap()).to_vec(),
        ..sandbox(name, "s1", ips[0], 1)
    }
}

#[test]
fn a_pod_with_two_ipv4_addresses_is_mapped_at_the_one_that_the_api_names() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", None)).settle();
    node.up(with_two_of_a_family("a"));
    let first = ["10.244.0.2", "fd00:244::2"].map(str::to_owned);
    assert_eq!(node.leads_to("a"), first.into());
    let ports = node.host_ports("a");
    assert_eq!(node.state.desired().len(), 2 * ports.len());
    let mut shown = node.shown("a");
    shown.pod_ips = vec!["10.244.0.3".parse().unwrap()];
    node.applied(shown).settle();
    let named = ["10.244.0.3", "fd00:244::2"].map(str::to_owned);
    assert_eq!(node.leads_to("a"), named.clone().into());
    assert_eq!(node.host_ports("a"), ports);
    let annotation = node.shown("a").record.annotation.unwrap();
    assert!(annotation.contains("10.244.0.3"), "{annotation}");
    // no other pod gets traffic at the address that is not mapped
    node.applied(facts("b", Some("10.244.0.2"))).settle();
    assert!(node.leads_to("b").is_empty());
    // after a restart the rules stay, before the API is asked
    let mappings = node.state.desired();
    let found = Recovered {
        held: mappings.iter().map(crate::kernel::port_of).collect(),
        mappings,
        intact: true,
        ..Recovered::default()
    };
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
    node.up(with_two_of_a_family("a"));
    assert_eq!(node.leads_to("a"), named.into());
}

#[test]
fn of_two_rules_that_lead_one_port_to_one_pod_one_stays() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let mut mappings = node.state.desired();
    let ports = mappings.len();
    mappings.extend(mappings.clone().into_iter().map(|mut mapping| {
        mapping.pod_ip = "10.244.0.3".parse().unwrap();
        mapping
    }));
    let found = Recovered {
        held: mappings.iter().map(crate::kernel::port_of).collect(),
        mappings: BTreeSet::new(),
        in_other_backends: mappings,
        ..Recovered::default()
    };
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
    assert_eq!(node.state.desired().len(), ports);
}
