//! Connections that get no reply.

use super::*;

fn silent(node: &Node) -> BTreeSet<Mapping> {
    let rules = node.state.desired();
    rules
        .into_iter()
        .filter(|rule| rule.container_port.get() == 9040)
        .collect()
}

#[test]
fn port_without_replies_for_30_s_is_an_event_once() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (rules, silent) = (node.state.desired(), silent(&node));
    let written = node.written.len();
    for second in [0, 10, 29] {
        node.state
            .replies_read(NOW + Duration::from_secs(second), &silent);
        node.settle();
        assert_eq!(node.notes(EventKind::NoReplies), [""; 0]);
    }
    for second in [30, 40, 100] {
        node.state
            .replies_read(NOW + Duration::from_secs(second), &silent);
        node.settle();
        let notes = node.notes(EventKind::NoReplies);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].contains("--masquerade=always"), "{notes:?}");
    }
    // only shown: a NetworkPolicy looks the same
    assert_eq!(node.state.desired(), rules);
    assert_eq!(node.written.len(), written);
}

#[test]
fn silence_that_ends_starts_again_from_the_beginning() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let silent = silent(&node);
    let at = |second| NOW + Duration::from_secs(second);
    node.state.replies_read(at(0), &silent);
    node.state.replies_read(at(20), &BTreeSet::new());
    node.state.replies_read(at(25), &silent);
    node.state.replies_read(at(50), &silent);
    node.settle();
    assert_eq!(node.notes(EventKind::NoReplies), [""; 0]);
    node.state.replies_read(at(55), &silent);
    node.settle();
    assert_eq!(node.notes(EventKind::NoReplies).len(), 1);
}
