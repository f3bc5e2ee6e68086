//! Rules that the kernel refuses, or that other programs remove.

use super::*;

#[test]
fn a_refused_change_is_tried_again_and_reported() {
    let mut node = Node::new("20000-20003");
    node.later(0);
    node.applied(facts("a", Some("10.244.0.2")));
    node.settle_with(|_| Ok(()), |_| Err("lock held".to_owned()));
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(condition.reason, "DataplaneError");
    assert!(condition.message.contains("lock held"));
    node.later(1);
    assert!(node.last().condition.as_ref().unwrap().status);
    assert_eq!(node.state.counts().dataplane_error, None);
}

#[test]
fn a_node_that_denies_the_right_to_change_rules_has_its_own_reason() {
    let mut node = Node::new("20000-20003");
    node.later(0);
    node.applied(facts("a", Some("10.244.0.2")));
    let denied = "Operation not permitted";
    node.settle_with(|_| Ok(()), |_| Err(denied.to_owned()));
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(condition.reason, "NotPermitted");
    assert!(condition.message.contains(denied));
    node.later(1);
    assert!(node.last().condition.as_ref().unwrap().status);
}

#[test]
fn flushed_rules_are_restored_and_reported() {
    let mut node = Node::new("20000-20003");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state.observed(node.now, BTreeSet::new(), false);
    let actions = node.state.take_actions();
    let [Action::Program(plan)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(plan.to_create.len(), 2);
    node.state.programmed(node.now, &plan.clone(), Ok(()));
    node.settle();
    assert_eq!(node.events(), [EventKind::Mapped, EventKind::Repaired]);
    assert_eq!(node.written.len(), 1, "the result never changed");
}

#[test]
fn a_reading_from_before_a_change_is_ignored() {
    let mut node = Node::new("20000-20003");
    node.settle();
    node.applied(facts("a", Some("10.244.0.2")));
    let hold = node.state.take_actions();
    let Some(Action::Hold(keys)) = hold.into_iter().next() else {
        panic!()
    };
    node.state.programmed(node.now, &Plan::default(), Ok(()));
    node.state.held(
        node.now,
        keys.into_iter().map(|key| (key, Ok(()))).collect(),
    );
    node.state.observed(node.now, BTreeSet::new(), false);
    node.settle();
    assert_eq!(node.events(), [EventKind::Mapped]);
}

#[test]
fn a_pod_that_the_kernel_refuses_does_not_stop_the_others() {
    let mut node = Node::new("20000-29999");
    let refuse = |plan: &Plan| {
        let bad = plan
            .to_create
            .iter()
            .any(|mapping| mapping.owner.as_str() == "uid-p7");
        if bad {
            Err("no such protocol".to_owned())
        } else {
            Ok(())
        }
    };
    node.settle();
    for n in 0..40 {
        let ip = format!("10.244.0.{}", n + 2);
        node.applied(facts(&format!("p{n}"), Some(&ip)));
    }
    let begun = node.now;
    for _ in 0..100 {
        node.settle_with(|_| Ok(()), refuse);
        let Some(next) = node
            .state
            .next_deadline()
            .filter(|at| *at < begun + Duration::from_secs(5))
        else {
            break;
        };
        node.now = next;
        node.state.tick(next);
    }
    let mapped = node
        .written
        .iter()
        .filter(|p| p.wanted.condition.as_ref().unwrap().status);
    assert_eq!(mapped.count(), 39);
    let refused: Vec<&Publication> = node
        .written
        .iter()
        .filter(|p| !p.wanted.condition.as_ref().unwrap().status)
        .collect();
    assert_eq!(refused.len(), 1, "only the refused pod is told");
    assert_eq!(refused[0].pod.name, "p7");
    let message = &refused[0].wanted.condition.as_ref().unwrap().message;
    assert!(message.contains("no such protocol"), "{message}");
}

#[test]
fn repeated_damage_is_reported_once_a_minute_with_its_count() {
    let mut node = Node::new("20000-20003");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    for _ in 0..5 {
        node.state.observed(node.now, BTreeSet::new(), false);
        node.settle();
    }
    assert_eq!(node.notes(EventKind::Repaired).len(), 1);
    assert!(EventKind::Repaired.is_warning());
    assert_eq!(
        node.state.next_deadline(),
        Some(NOW + Duration::from_mins(1))
    );
    node.later(59);
    assert_eq!(node.notes(EventKind::Repaired).len(), 1);
    node.later(1);
    let notes = node.notes(EventKind::Repaired);
    assert!(
        notes.len() == 2 && notes[1].contains("4 more times"),
        "{notes:?}"
    );
    node.later(60);
    assert_eq!(node.notes(EventKind::Repaired).len(), 2);
    node.state.observed(node.now, BTreeSet::new(), true);
    node.settle();
    assert_eq!(
        node.notes(EventKind::Repaired).len(),
        3,
        "reported at once again"
    );
}

/// One user may change mappings so fast that a change is always due.
#[test]
fn changes_wait_for_a_read_that_has_waited() {
    let mut node = Node::new("20000-20003");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state.read_asked(node.now);
    node.later(1);
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    assert_eq!(node.written.len(), 2, "the read has not waited for long");
    node.later(1);
    node.state.pod_gone(node.now, &"uid-a".parse().unwrap());
    assert_eq!(node.state.take_actions(), [], "the read comes first");
    assert_eq!(node.state.next_deadline(), None);
    node.state.read_failed(node.now);
    assert!(matches!(
        node.state.take_actions().as_slice(),
        [Action::Program(_)]
    ));
}

fn refuse_bad(plan: &Plan) -> Result<(), String> {
    let is_bad = |mapping: &Mapping| mapping.owner.as_str() == "uid-bad";
    if plan.to_create.iter().any(is_bad) {
        return Err("no such protocol".to_owned());
    }
    Ok(())
}

/// A node with the pods good and bad; the rules of bad have been refused for minutes, and nothing else
/// has happened.
fn with_a_refused_pod() -> Node {
    let mut node = Node::new("20000-20099");
    node.applied(facts("good", Some("10.244.0.2"))).settle();
    node.applied(facts("bad", Some("10.244.0.3")));
    node.settle_with(|_| Ok(()), refuse_bad);
    let end = node.now + Duration::from_mins(20);
    while let Some(next) = node.state.next_deadline().filter(|at| *at < end) {
        node.now = next;
        node.state.tick(next);
        node.settle_with(|_| Ok(()), refuse_bad);
    }
    node
}

#[test]
fn rules_of_a_pod_that_is_gone_do_not_wait_for_a_refused_pod() {
    let mut node = with_a_refused_pod();
    node.state.pod_gone(node.now, &"uid-good".parse().unwrap());
    node.settle_with(|_| Ok(()), refuse_bad);
    assert_eq!(node.state.counts().mappings, 0);
}

#[test]
fn flushed_rules_do_not_wait_for_a_refused_pod() {
    let mut node = with_a_refused_pod();
    node.now += Duration::from_secs(1);
    node.state.observed(node.now, BTreeSet::new(), false);
    node.settle_with(|_| Ok(()), refuse_bad);
    assert_eq!(node.state.counts().mappings, 2);
}

#[test]
fn a_change_that_failed_once_does_not_wait_for_a_refused_pod() {
    let mut node = with_a_refused_pod();
    for (name, ip) in [("b", "10.244.0.4"), ("c", "10.244.0.5")] {
        node.applied(facts(name, Some(ip)));
    }
    node.settle_with(|_| Ok(()), |_| Err("lock held".to_owned()));
    let next = node.state.next_deadline().unwrap();
    assert!(next < node.now + Duration::from_secs(1), "{next:?}");
}

/// A user may change the annotation of pods whose rules the kernel refuses as often as is tried.
#[test]
fn pods_that_are_refused_again_and_again_do_not_come_before_one_that_waits() {
    let refuse = |plan: &Plan| {
        let bad = |mapping: &Mapping| mapping.owner.as_str().starts_with("uid-a");
        if plan.to_create.iter().any(bad) {
            return Err("no such protocol".to_owned());
        }
        Ok(())
    };
    let mut node = Node::new("20000-20999");
    let bad = |n: u8| facts(&format!("a{n}"), Some(&format!("10.244.0.{}", n + 2)));
    let ask_again = |node: &mut Node| {
        for n in 0..10 {
            let mut without = bad(n);
            without.record.annotation = None;
            node.applied(without).applied(bad(n));
        }
        node.settle_with(|_| Ok(()), refuse);
    };
    node.settle();
    ask_again(&mut node);
    node.applied(facts("z", Some("10.244.0.99")));
    node.settle_with(|_| Ok(()), refuse);
    let mut tries = 0;
    while node.state.counts().mappings == 0 {
        tries += 1;
        assert!(tries < 30, "it never gets its turn");
        node.now = node.state.next_deadline().unwrap();
        node.state.tick(node.now);
        ask_again(&mut node);
    }
}
