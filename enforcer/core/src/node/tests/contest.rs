//! Another controller that writes the request over the result.

use super::*;

/// The controller writes `""` over the pod's result.
fn reset(node: &mut Node) {
    let mut pod = node.shown("a");
    pod.record.annotation = Some(String::new());
    pod.annotation_manager = Some("gitops".to_owned());
    node.applied(pod).settle();
}

#[test]
fn a_controller_that_resets_the_annotation_costs_one_write_a_minute_and_is_named() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, rules) = (node.host_ports("a"), node.state.desired());
    for _ in 0..5 {
        reset(&mut node);
    }
    assert_eq!(node.written.len(), 6, "five are published again at once");
    assert_eq!(node.notes(EventKind::AnnotationContested), [""; 0]);
    for minute in 1..=3 {
        reset(&mut node);
        node.later(59);
        assert_eq!(node.written.len(), 5 + minute);
        node.later(1);
        assert_eq!(node.written.len(), 6 + minute);
        let notes = node.notes(EventKind::AnnotationContested);
        assert_eq!(notes.len(), minute);
        assert!(notes[0].contains(r#"field manager "gitops""#), "{notes:?}");
    }
    assert_eq!((node.host_ports("a"), node.state.desired()), (ports, rules));
    assert!(node.last().condition.as_ref().unwrap().status);
    // a result that stood for a minute ends the contest
    node.later(60);
    reset(&mut node);
    assert_eq!(node.written.len(), 10);
    assert_eq!(node.notes(EventKind::AnnotationContested).len(), 3);
}

#[test]
fn other_requests_and_losses_do_not_wait_for_a_contest() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    for _ in 0..6 {
        reset(&mut node);
    }
    let written = node.written.len();
    let mut pod = node.shown("a");
    pod.record.annotation = Some(r#"[{"containerPort":53}]"#.into());
    node.applied(pod).settle();
    assert_eq!(node.written.len(), written + 1);
    node.state.keeper_listed(node.now, &BTreeSet::new());
    node.settle_with(|_| Err("Address already in use".to_owned()), |_| Ok(()));
    assert_eq!(
        node.last().condition.as_ref().unwrap().reason,
        "PortConflict"
    );
}
