//! Results that no enforcer wrote.

use super::*;

fn forge(node: &mut Node, port: u16) {
    let mut facts = node.shown("a");
    facts.record.annotation = Some(format!(
        r#"[{{"hostPort":{port},"containerPort":9040,"protocol":"TCP","podName":"a","podIP":"10.9.9.9"}}]"#
    ));
    node.applied(facts).settle();
}

#[test]
fn a_forged_result_is_reported_and_overwritten() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, truth) = (node.host_ports("a"), node.last().clone());
    forge(&mut node, 22);
    assert_eq!(node.last(), &truth);
    assert_eq!((node.host_ports("a"), node.written.len()), (ports, 2));
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    let notes = node.notes(EventKind::ForgedResult);
    assert!(
        notes.len() == 1 && notes[0].contains("named host port 22/TCP"),
        "{notes:?}"
    );
    assert!(EventKind::ForgedResult.is_warning());
    assert_eq!(EventKind::ForgedResult.reason(), "ForgedResult");
}

#[test]
fn repeated_forgery_is_reported_once_a_minute() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    for port in 1..=20 {
        forge(&mut node, port);
    }
    assert_eq!(node.notes(EventKind::ForgedResult).len(), 1);
    node.later(60);
    let notes = node.notes(EventKind::ForgedResult);
    assert!(
        notes.len() == 2 && notes[1].contains("19 more times"),
        "{notes:?}"
    );
    assert!(
        node.last()
            .annotation
            .as_ref()
            .unwrap()
            .contains("10.244.0.2")
    );
}

#[test]
fn a_forged_result_seen_before_our_own_write_is_overwritten_at_once() {
    let mut node = Node {
        echoes: false,
        ..Node::new("20000-29999")
    };
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    forge(&mut node, 22);
    assert_eq!(node.written.len(), 2);
}

#[test]
fn our_own_results_are_never_forged_even_old_ones() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let first = node.shown("a");
    let mut moved = first.clone();
    moved.pod_ips = vec!["10.244.0.3".parse().unwrap()];
    node.applied(moved).settle();
    let mut narrow = node.shown("a");
    narrow.record.annotation = Some(r#"[{"containerPort":53}]"#.into());
    node.applied(narrow).settle();
    // an event from before all that
    node.applied(first).settle();
    assert!(node.notes(EventKind::ForgedResult).is_empty());
}

#[test]
fn after_a_restart_or_a_reboot_only_results_of_others_are_forged() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let seen = node.shown("a");
    let mappings = node.state.desired();
    let found = Recovered {
        held: mappings.iter().map(|m| (m.protocol, m.host_port)).collect(),
        mappings,
        intact: true,
        host_addresses: BTreeSet::new(),
        ..Recovered::default()
    };
    let restarted = || NodeState::recover(config("20000-29999"), 2, NOW, found.clone());
    for state in [NodeState::new(config("20000-29999"), 2), restarted()] {
        node.state = state;
        node.applied(seen.clone()).settle();
        assert!(node.notes(EventKind::ForgedResult).is_empty());
    }
    // the first thing a new enforcer sees is a result that its own condition does not name
    node.state = restarted();
    node.pods.insert(seen.pod.uid.clone(), seen);
    forge(&mut node, 22);
    assert_eq!(node.notes(EventKind::ForgedResult).len(), 1);
}

#[test]
fn a_result_in_a_manifest_chooses_no_port() {
    let mut node = Node::new("20000-29999");
    let mut copied = facts("a", Some("10.244.0.2"));
    copied.record.annotation = Some(
        r#"[{"hostPort":20007,"containerPort":9040,"protocol":"TCP","podName":"a","podIP":"10.9.9.9"}]"#.into(),
    );
    node.applied(copied).settle();
    assert_eq!(node.notes(EventKind::ForgedResult).len(), 1);
    assert!(
        !node.host_ports("a").contains(&20_007),
        "one chance in 10,000"
    );
    let mut broken = node.shown("a");
    broken.record.annotation = Some(r#"[{"hostPort":"20007","podIP":1}]"#.into());
    node.applied(broken).later(60);
    assert_eq!(node.notes(EventKind::ForgedResult).len(), 2);
}

#[test]
fn a_pod_that_waits_for_a_port_gets_none_because_it_names_it() {
    let mut got = BTreeSet::new();
    for seed in 0..16 {
        let mut node = Node::new("20000-20001");
        node.state = NodeState::new(config("20000-20001"), seed);
        node.state.listed = true;
        let mut a = facts("a", Some("10.244.0.2"));
        a.record.annotation = Some(r#"[{"containerPort":1},{"containerPort":2}]"#.into());
        node.applied(a).settle();
        let mut b = facts("b", Some("10.244.0.3"));
        b.spec.containers[0].ports.truncate(1);
        node.applied(b).settle();
        assert_eq!(node.last().condition.as_ref().unwrap().reason, "NoFreePort");
        let mut forged = node.shown("b");
        forged.record.annotation = Some(
            r#"[{"hostPort":20001,"containerPort":9040,"protocol":"TCP","podName":"b","podIP":"10.244.0.3"}]"#.into(),
        );
        node.applied(forged).settle();
        node.gone("a").later(31);
        got.extend(node.host_ports("b"));
    }
    assert_eq!(got, [20_000, 20_001].into());
}
