//! Which pod gets which port.

use portmapping_shared::{HostPort, Protocol};

use super::*;

#[test]
fn a_released_port_rests_before_another_pod_gets_it() {
    let mut node = Node::new("20000-20000");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state.pod_gone(node.now, &"uid-a".parse().unwrap());
    node.settle();
    assert!(node.state.desired().is_empty());
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    assert_eq!(node.last().condition.as_ref().unwrap().reason, "NoFreePort");
    assert_eq!(
        node.state.next_deadline(),
        Some(NOW + Duration::from_secs(30))
    );
    node.later(29);
    assert_eq!(node.host_ports("b"), [0_u16; 0]);
    node.later(1);
    assert_eq!(node.host_ports("b"), [20_000, 20_000]);
    assert!(node.last().condition.as_ref().unwrap().status);
    assert_eq!(
        node.events(),
        [EventKind::Mapped, EventKind::NoFreePort, EventKind::Mapped]
    );
}

#[test]
fn an_exhausted_range_is_reported_once_with_its_numbers() {
    let mut node = Node::new("20000-20001");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    node.applied(facts("c", Some("10.244.0.4"))).settle();
    let notes: Vec<&String> = node
        .emitted
        .iter()
        .filter(|(kind, _)| *kind == EventKind::NoFreePort)
        .map(|(_, n)| n)
        .collect();
    assert_eq!(notes.len(), 1);
    assert!(
        notes[0].contains("range 20000-20001 has 2 ports, 2 mapped, 0 cooling"),
        "{}",
        notes[0]
    );
    let written = node.written.len();
    node.later(5).later(5);
    assert_eq!(
        node.written.len(),
        written,
        "a pod that waits costs no further write"
    );
}

#[test]
fn a_port_of_another_process_is_replaced_before_the_pod_is_mapped() {
    let mut node = Node::new("20000-20003");
    let taken = |key: PortKey| {
        if key.1.get() == 20_000 {
            Err("in use".to_owned())
        } else {
            Ok(())
        }
    };
    for (name, ip) in [
        ("a", "10.244.0.2"),
        ("b", "10.244.0.3"),
        ("c", "10.244.0.4"),
    ] {
        node.applied(facts(name, Some(ip)))
            .settle_with(taken, |_| Ok(()));
    }
    assert!(
        node.written
            .iter()
            .all(|p| p.wanted.condition.as_ref().unwrap().status)
    );
    assert_eq!(node.state.counts().quarantined, 2);
    node.later(60);
    assert_eq!(
        node.state.counts().quarantined,
        0,
        "the quarantine has an end"
    );
}

#[test]
fn a_mapped_port_that_another_process_took_is_reported_and_asked_for_again() {
    let mut node = Node::new("20000-20003");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let seen = echoed(&node, facts("a", Some("10.244.0.2")));
    node.applied(seen).settle();
    node.state.keeper_listed(node.now, &BTreeSet::new());
    node.settle_with(|_| Err("Address already in use".to_owned()), |_| Ok(()));
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (false, "PortConflict")
    );
    assert_eq!(
        node.state.desired().len(),
        2,
        "the rules win over the other process's socket"
    );
    node.later(2);
    assert!(node.last().condition.as_ref().unwrap().status);
    assert_eq!(
        node.events(),
        [
            EventKind::Mapped,
            EventKind::PortConflict,
            EventKind::Mapped
        ]
    );
}

#[test]
fn a_keeper_that_fails_is_asked_again() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2")));
    let actions = node.state.take_actions();
    let Some(Action::Hold(keys)) = actions.into_iter().next() else {
        panic!()
    };
    node.state.keeper_failed(NOW, &keys);
    assert!(node.state.next_deadline().is_some_and(|at| at > NOW));
    node.state.programmed(NOW, &Plan::default(), Ok(()));
    node.later(2);
    assert!(node.last().condition.as_ref().unwrap().status);
}

fn again(name: &str, uid: &str, ip: &str) -> PodFacts {
    let mut facts = facts(name, Some(ip));
    facts.pod.uid = uid.parse().unwrap();
    facts
}

#[test]
fn a_pod_created_again_under_its_name_gets_its_old_ports() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("web-0", Some("10.244.0.2"))).settle();
    let ports = node.host_ports("web-0");
    node.gone("web-0").later(29);
    node.applied(again("web-0", "uid-second", "10.244.0.3"))
        .settle();
    assert_eq!(node.host_ports("second"), ports);
    // no event said that the old pod is gone
    node.applied(again("web-0", "uid-third", "10.244.0.4"))
        .settle();
    assert_eq!(node.host_ports("third"), ports);
    assert!(node.host_ports("second").is_empty());
    assert_eq!(node.leads_to("third"), ["10.244.0.4".to_owned()].into());
    // after the cool-down no pod has a right to it
    node.gone("third").later(31);
    node.applied(again("web-0", "uid-fourth", "10.244.0.5"))
        .settle();
    assert_ne!(node.host_ports("fourth"), ports, "one chance in 10^8");
}

#[test]
fn a_pod_of_the_same_name_in_another_namespace_gets_other_ports() {
    let mut node = Node::new("20000-20000");
    node.applied(facts("web-0", Some("10.244.0.2"))).settle();
    node.gone("web-0");
    let mut other = again("web-0", "uid-second", "10.244.0.3");
    other.pod.namespace = "other".into();
    node.applied(other).settle();
    assert_eq!(node.last().condition.as_ref().unwrap().reason, "NoFreePort");
    // in its own namespace it gets them, though no port is free
    node.applied(again("web-0", "uid-third", "10.244.0.4"))
        .settle();
    assert_eq!(node.host_ports("third"), [20_000, 20_000]);
}

#[test]
fn free_ports_go_to_the_oldest_pod_first() {
    let mut node = Node::new("20000-20001");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    for (name, ip) in [("z", "10.244.0.4"), ("c", "10.244.0.5")] {
        node.applied(facts(name, Some(ip))).settle();
    }
    node.gone("a").later(30);
    assert_eq!(
        (node.host_ports("z").len(), node.host_ports("c").len()),
        (2, 0)
    );
    node.gone("b").later(30);
    assert_eq!(node.host_ports("c").len(), 2);
}

#[test]
fn ports_that_the_keeper_received_from_another_one_and_nothing_needs_are_closed() {
    let mut node = Node::new("20000-20003");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let both = |port: u16| {
        let port = HostPort::new(port).unwrap();
        [(Protocol::Tcp, port), (Protocol::Udp, port)]
    };
    let desired = node.state.desired();
    let mapped: BTreeSet<_> = desired
        .iter()
        .map(|rule| (rule.protocol, rule.host_port))
        .collect();
    let held: BTreeSet<_> = (20000..=20003).flat_map(both).collect();
    node.state.keeper_listed(node.now, &held);
    let actions = node.state.take_actions();
    let [Action::Release(released)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    let released: BTreeSet<_> = released.iter().copied().collect();
    assert_eq!(released, held.difference(&mapped).copied().collect());
}

#[test]
fn a_port_that_is_bound_too_late_is_closed_again() {
    let mut node = Node::new("20000-20000");
    node.applied(facts("a", None));
    let Some(Action::Hold(keys)) = node.state.take_actions().into_iter().next() else {
        panic!()
    };
    node.state.programmed(node.now, &Plan::default(), Ok(()));
    node.state.keeper_listed(node.now, &BTreeSet::new());
    node.settle_with(|_| Err("in use".to_owned()), |_| Ok(()));
    assert_eq!(node.state.counts().quarantined, 2);
    node.state
        .held(node.now, keys.iter().map(|key| (*key, Ok(()))).collect());
    let actions = node.state.take_actions();
    let [Action::Release(released)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(released, &keys);
    node.state.keeper_failed(node.now, &keys);
    node.later(2).later(60);
    assert_eq!(
        node.host_ports("a").len(),
        2,
        "in the end the ports are free"
    );
}

#[test]
fn a_refused_pod_that_asks_for_fewer_ports_is_mapped() {
    let mut node = Node::new("20000-20000");
    let one = r#"[{"containerPort":9040}]"#;
    let two = r#"[{"containerPort":9040},{"containerPort":9041}]"#;
    for (request, mapped) in [(one, true), (two, false), (one, true)] {
        let mut pod = facts("a", Some("10.244.0.2"));
        pod.record.annotation = Some(request.into());
        node.applied(pod).settle();
        let condition = node.last().condition.clone().unwrap();
        assert_eq!(condition.status, mapped, "{request}: {condition:?}");
        assert_eq!(node.host_ports("a"), [20_000]);
    }
}

#[test]
fn a_port_that_the_kernel_cannot_bind_is_named_and_delays_no_other_pod() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2")));
    let actions = node.state.take_actions();
    let Some(Action::Hold(keys)) = actions.into_iter().next() else {
        panic!()
    };
    node.state.programmed(node.now, &Plan::default(), Ok(()));
    let failures = keys.iter().map(|key| (*key, "no descriptors".to_owned()));
    node.state.hold_failed(node.now, failures.collect());
    node.settle();
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(
        (condition.status, &*condition.reason),
        (false, "DataplaneError")
    );
    let (protocol, number) = keys[0];
    let told = format!("host port {number}/{protocol} cannot be held: no descriptors");
    assert!(condition.message.contains(&told), "{}", condition.message);
    assert_eq!(node.events(), [EventKind::DataplaneError]);
    // another pod is mapped at once
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    assert_eq!(node.leads_to("b"), ["10.244.0.3".to_owned()].into());
    // the port is asked for again, and the pod keeps its numbers
    let ports = node.host_ports("a");
    node.later(2);
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    assert_eq!(node.host_ports("a"), ports);
    assert!(node.last().condition.as_ref().unwrap().status);
}

#[test]
fn a_port_that_a_process_took_from_its_cool_down_is_not_free_before_the_cool_down_is_over() {
    let mut node = Node::new("20000-20000");
    node.state.config.cooldown = Duration::from_mins(3);
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.gone("a");
    // the same pod again: its ports are reclaimed, but another process has bound them
    let mut again = facts("a", Some("10.244.0.3"));
    again.pod.uid = "uid-again".parse().unwrap();
    node.applied(again);
    node.settle_with(|_| Err("in use".to_owned()), |_| Ok(()));
    assert_eq!(node.state.counts().quarantined, 2);
    node.gone("again");
    node.applied(facts("b", Some("10.244.0.4"))).settle();
    node.later(120);
    assert!(!node.is_true("b"), "{}", node.message("b"));
    node.later(60);
    assert_eq!(node.state.counts().quarantined, 0);
}
