//! A firewall of the node that drops everything that is forwarded to pods.

use super::truth::mapped;
use super::*;

#[test]
fn no_pod_says_true_while_a_firewall_drops_all_that_is_forwarded_to_it() {
    let mut node = Node::new("20000-29999");
    mapped(&mut node, "a", "10.244.0.2");
    let (ports, rules) = (node.host_ports("a"), node.state.desired());
    let of_ipv6 = Closed {
        ipv6: Some("no client reaches mapped pods (IPv6)".to_owned()),
        ..Closed::default()
    };
    node.state.forward_read(node.now, of_ipv6);
    node.settle().later(10);
    assert!(node.is_true("a"), "it has no IPv6 address");

    let text = "no client reaches mapped pods: FORWARD drops everything";
    let of_ipv4 = Closed {
        ipv4: Some(text.to_owned()),
        ..Closed::default()
    };
    let writes = node.written.len();
    node.state.forward_read(node.now, of_ipv4.clone());
    node.settle().later(1);
    node.state.forward_read(node.now, Closed::default());
    node.settle().later(10);
    assert_eq!(node.written.len(), writes, "a firewall that reloads");

    node.state.forward_read(node.now, of_ipv4);
    node.settle().later(2);
    assert!(!node.is_true("a"));
    assert_eq!(node.message("a"), text);
    assert_eq!(node.notes(EventKind::DataplaneError), [text]);
    // a pod that comes now is told at once
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    assert_eq!(node.message("b"), text);
    // its ports and rules stay
    assert_eq!(node.host_ports("a"), ports);
    assert!(rules.is_subset(&node.state.desired()));

    node.state.forward_read(node.now, Closed::default());
    node.settle();
    assert!(node.is_true("a") && node.is_true("b"));
}

#[test]
fn a_start_knows_that_a_firewall_drops_everything() {
    let text = "no client reaches mapped pods: FORWARD drops everything";
    let closed = Closed {
        ipv4: Some(text.to_owned()),
        ..Closed::default()
    };
    let mut node = Node::new("20000-29999");
    let found = Recovered {
        intact: true,
        closed,
        ..Recovered::default()
    };
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
    let pod = facts("a", Some("10.244.0.2"));
    node.applied(pod.clone());
    node.state.relisted(NOW, &[pod.pod.uid].into());
    node.settle().later(2);
    let ever_true = node.written.iter().any(|it| {
        let condition = it.wanted.condition.as_ref();
        condition.is_some_and(|it| it.status)
    });
    assert!(!ever_true);
    assert_eq!(node.message("a"), text);
}

#[test]
fn a_firewall_of_a_family_that_the_node_does_not_serve_closes_nothing() {
    let mut node = Node::new("20000-29999");
    let own = ["10.0.0.11".parse().unwrap()].into();
    node.state.host_addresses_read(node.now, own);
    let mut dual = facts("a", Some("10.244.0.2"));
    dual.pod_ips.push("fd00:10:244::2".parse().unwrap());
    node.applied(dual).settle();
    let of_ipv6 = Closed {
        ipv6: Some("no client reaches mapped pods (IPv6)".to_owned()),
        ..Closed::default()
    };
    node.state.forward_read(node.now, of_ipv6.clone());
    node.settle().later(10);
    assert!(node.is_true("a"));
    let both = ["10.0.0.11".parse().unwrap(), "fd00::11".parse().unwrap()];
    node.state.host_addresses_read(node.now, both.into());
    node.settle().later(10);
    assert!(!node.is_true("a"));
}
