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

#[test]
fn a_user_who_edits_the_annotation_without_end_gets_some_events_at_once_and_then_one_a_minute() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let edit = |node: &mut Node, nth: usize| {
        let mut pod = node.shown("a");
        let text = match nth % 3 {
            0 => format!("no request, number {nth}"),
            1 => r#"[{"containerPort":53}]"#.to_owned(),
            _ => r#"[{"containerPort":9040}]"#.to_owned(),
        };
        pod.record.annotation = Some(text);
        node.applied(pod).settle();
    };
    for nth in 0..300 {
        edit(&mut node, nth);
    }
    assert_eq!(node.emitted.len(), 25, "{:?}", node.emitted.last());
    let condition = node.last().condition.clone().unwrap();
    assert!(condition.message.contains("-> 9040/TCP"), "{condition:?}");
    for minute in 1..=3 {
        node.later(60);
        for nth in 0..30 {
            edit(&mut node, nth);
        }
        assert_eq!(node.emitted.len(), 25 + minute);
        let (_, text) = node.emitted.last().unwrap();
        assert!(text.contains("events before it were left out)"), "{text}");
    }
    // a quiet time gives all of them back
    node.later(3600);
    for nth in 0..300 {
        edit(&mut node, nth);
    }
    assert_eq!(node.emitted.len(), 28 + 25);
}
