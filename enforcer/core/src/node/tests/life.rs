//! How one pod is mapped, changed and unmapped.

use super::*;

#[test]
fn a_pod_is_held_then_programmed_then_published() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", None));
    let actions = node.state.take_actions();
    assert!(
        matches!(&actions[0], Action::Hold(keys) if keys.len() == 2),
        "{actions:?}"
    );
    assert!(
        matches!(&actions[1], Action::Program(plan) if plan.is_empty()),
        "{actions:?}"
    );
    let Action::Hold(keys) = &actions[0] else {
        unreachable!()
    };
    node.state.programmed(NOW, &Plan::default(), Ok(()));
    node.state
        .held(NOW, keys.iter().map(|key| (*key, Ok(()))).collect());
    assert_eq!(node.state.take_actions(), [], "no address, no rules");

    node.applied(facts("a", Some("10.244.0.2")));
    let actions = node.state.take_actions();
    let [Action::Program(plan)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((plan.to_create.len(), plan.to_remove.len()), (2, 0));
    node.state.programmed(NOW, plan, Ok(()));
    let actions = node.state.take_actions();
    let [Action::Publish(publication)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    let entries = annotation::decode(publication.wanted.annotation.as_deref().unwrap()).unwrap();
    assert_eq!(
        entries.iter().map(|e| e.container_port).collect::<Vec<_>>(),
        [9040, 53]
    );
    assert!(publication.wanted.condition.as_ref().unwrap().status);
    node.echoes = false;
    node.publish(publication.clone());
    let actions = node.state.take_actions();
    assert!(matches!(&actions[..], [Action::Event(event)] if event.kind == EventKind::Mapped));
}

#[test]
fn a_result_is_written_once_even_if_old_events_repeat() {
    let mut node = Node {
        echoes: false,
        ..Node::new("20000-20009")
    };
    node.applied(facts("a", Some("10.244.0.2")));
    let old = node.shown("a");
    node.settle();
    for _ in 0..3 {
        // a list from the API server's cache may be older than our write
        node.state.pod_applied(node.now, old.clone());
        node.settle();
    }
    node.state.pod_applied(node.now, node.shown("a"));
    node.settle();
    assert_eq!(
        (node.written.len(), node.events()),
        (1, vec![EventKind::Mapped])
    );
}

#[test]
fn a_smaller_request_releases_the_other_ports() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let mut fewer = echoed(&node, facts("a", Some("10.244.0.2")));
    fewer.record.annotation = Some(r#"[{"containerPort":9040}]"#.into());
    node.applied(fewer).settle();
    let entries = annotation::decode(node.last().annotation.as_deref().unwrap()).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(node.state.counts().cooling, 1);
    // the mark keeps what was asked for once the result stands in the annotation
    let seen = echoed(&node, facts("a", Some("10.244.0.2")));
    node.applied(seen).settle();
    assert_eq!(node.host_ports("a").len(), 1);
    assert_eq!(node.written.len(), 2);
}

#[test]
fn a_finished_pod_is_unmapped_and_its_result_removed() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let mut finished = echoed(&node, facts("a", Some("10.244.0.2")));
    finished.finished = true;
    node.applied(finished).settle();
    assert!(node.state.desired().is_empty());
    let record = node.last().clone();
    assert_eq!(
        (record.annotation.as_deref(), record.mark),
        (Some(""), None)
    );
    assert_eq!(record.condition.unwrap().reason, "Released");
    assert_eq!(node.events(), [EventKind::Mapped, EventKind::Released]);
    let mut seen = echoed(&node, facts("a", Some("10.244.0.2")));
    seen.finished = true;
    node.applied(seen).settle();
    assert_eq!(node.written.len(), 2, "it is left alone after that");
}

#[test]
fn removing_the_annotation_removes_all_that_was_written() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let mut bare = echoed(&node, facts("a", Some("10.244.0.2")));
    bare.record.annotation = None;
    node.applied(bare.clone()).settle();
    assert_eq!(*node.last(), Record::default());
    bare.spec.readiness_gates = vec![ReadinessGate {
        condition_type: portmapping_shared::contract::CONDITION.into(),
    }];
    bare.record = node.written[0].wanted.clone();
    bare.record.annotation = None;
    node.applied(bare).settle();
    let condition = node.last().condition.clone().unwrap();
    assert!(
        !condition.status && condition.message.contains("readiness gate"),
        "{condition:?}"
    );
}

#[test]
fn the_event_of_a_pod_without_a_readiness_gate_says_so() {
    let gate = ReadinessGate {
        condition_type: portmapping_shared::contract::CONDITION.into(),
    };
    for (gates, says_so) in [(vec![], true), (vec![gate], false)] {
        let mut node = Node::new("20000-20009");
        let mut pod = facts("a", Some("10.244.0.2"));
        pod.spec.readiness_gates = gates;
        node.applied(pod).settle();
        let (kind, said) = &node.emitted[0];
        assert_eq!(*kind, EventKind::Mapped);
        assert_eq!(said.contains("no readiness gate"), says_so, "{said}");
        let message = node.last().condition.clone().unwrap().message;
        assert!(!message.contains("gate"), "{message}");
    }
}

#[test]
fn a_pod_that_asks_for_nothing_is_never_written() {
    let mut node = Node::new("20000-20009");
    let mut plain = facts("plain", Some("10.244.0.2"));
    plain.record.annotation = None;
    let mut empty = facts("empty", Some("10.244.0.3"));
    empty.spec.containers.clear();
    node.applied(plain).applied(empty).settle();
    assert!(node.written.is_empty());
    assert_eq!(
        node.events(),
        [EventKind::NoPorts],
        "of the pod that asks for its ports"
    );
    assert!(node.state.status().pods.is_empty());
}

#[test]
fn an_invalid_request_is_reported_and_maps_nothing() {
    let mut node = Node::new("20000-20009");
    let mut broken = facts("a", Some("10.244.0.2"));
    broken.record.annotation = Some("yes please".into());
    node.applied(broken).settle();
    let Condition {
        status,
        reason,
        message,
    } = node.last().condition.clone().unwrap();
    assert!(
        !status && reason == "InvalidRequest" && message.contains("yes please"),
        "{message}"
    );
    assert_eq!(
        node.last().annotation.as_deref(),
        Some("yes please"),
        "the user's value stays"
    );
    assert!(node.host_ports("a").is_empty());
}

#[test]
fn a_pod_on_the_host_network_is_listed_without_rules() {
    let mut node = Node::new("20000-20009");
    let mut host = facts("a", Some("10.0.0.11"));
    host.spec.host_network = true;
    node.applied(host).settle();
    assert!(node.state.desired().is_empty() && node.host_ports("a").is_empty());
    let entries = annotation::decode(node.last().annotation.as_deref().unwrap()).unwrap();
    assert_eq!((entries[0].host_port, entries[1].host_port), (9040, 53));
}

#[test]
fn a_dual_stack_pod_has_one_host_port_in_both_families() {
    let mut node = Node::new("20000-20009");
    let mut dual = facts("a", Some("10.244.0.2"));
    dual.pod_ips.push("fd00:244::2".parse().unwrap());
    node.applied(dual).settle();
    let desired = node.state.desired();
    assert_eq!(desired.len(), 4);
    let ports: BTreeSet<PortKey> = desired.iter().map(|m| (m.protocol, m.host_port)).collect();
    assert_eq!(ports.len(), 2);
    let counts = node.state.counts();
    assert_eq!((counts.mappings, counts.ipv6_mappings), (4, 2));
}

#[test]
fn a_host_ip_of_a_family_that_the_pod_lacks_is_reported() {
    let mut node = Node::new("20000-20009");
    let mut pod = facts("a", Some("10.244.0.2"));
    pod.record.annotation = Some(r#"[{"containerPort":9040,"hostIP":"fd00::1"}]"#.into());
    node.applied(pod).settle();
    let condition = node.last().condition.clone().unwrap();
    assert!(
        condition
            .message
            .contains("on hostIP fd00::1 cannot be mapped"),
        "{condition:?}"
    );
}

#[test]
fn a_write_that_the_api_server_refuses_is_tried_again() {
    let mut node = Node::new("20000-20009");
    node.settle();
    node.applied(facts("a", Some("10.244.0.2")));
    let mut refusals = 0;
    while refusals < 3 {
        for action in node.state.take_actions() {
            match action {
                Action::Hold(keys) => {
                    node.state.held(
                        node.now,
                        keys.into_iter().map(|key| (key, Ok(()))).collect(),
                    );
                }
                Action::Program(plan) => node.state.programmed(node.now, &plan, Ok(())),
                Action::Publish(publication) => {
                    refusals += 1;
                    let uid = &publication.pod.uid;
                    node.state.published(node.now, uid, PublishOutcome::Failed);
                }
                other => panic!("{other:?}"),
            }
        }
        node.now = node
            .state
            .next_deadline()
            .map_or(node.now, |at| at.max(node.now));
        node.state.tick(node.now);
    }
    node.settle();
    assert_eq!(
        (node.written.len(), node.events()),
        (1, vec![EventKind::Mapped])
    );
}

#[test]
fn a_result_that_a_user_reset_is_written_again_with_the_same_ports() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (seen, ports) = (
        echoed(&node, facts("a", Some("10.244.0.2"))),
        node.host_ports("a"),
    );
    node.applied(seen.clone()).settle();
    let mut reset = seen;
    reset.record.annotation = Some(String::new());
    node.applied(reset).settle();
    assert_eq!(node.written.len(), 2);
    assert_eq!(node.written[0].wanted, node.written[1].wanted);
    assert_eq!(node.host_ports("a"), ports);
    assert_eq!(node.events(), [EventKind::Mapped], "nothing new happened");
}

#[test]
fn the_last_of_two_words_counts_though_a_result_is_in_flight() {
    let one = r#"[{"containerPort":53}]"#;
    for (last, ports) in [(Some(one), 1), (None, 0), (Some(""), 2)] {
        let mut node = Node::new("20000-29999");
        node.applied(facts("a", Some("10.244.0.2"))).settle();
        let mut pod = node.shown("a");
        pod.record.annotation = Some(r#"[{"containerPort":9040}]"#.into());
        node.applied(pod.clone());
        // the user writes again while the answer to the first word is decided and written
        pod.record.annotation = last.map(str::to_owned);
        let newest = node.changed(pod);
        node.settle();
        let text = node.shown("a").record.annotation;
        assert_eq!(text.as_deref(), last, "the user's text was overwritten");
        node.state.pod_applied(node.now, newest);
        node.settle();
        assert_eq!(node.host_ports("a").len(), ports);
        let shown = node.shown("a").record.annotation.unwrap_or_default();
        let entries = annotation::decode(&shown).unwrap_or_default();
        assert_eq!(entries.len(), ports, "{shown}");
    }
}

#[test]
fn a_publication_that_met_a_newer_version_is_not_repeated_for_the_old_one() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2")));
    let newest = node.changed(node.shown("a"));
    node.settle();
    assert_eq!(node.written, []);
    assert_eq!(
        node.state.take_actions(),
        [],
        "it waits for the newer version"
    );
    node.state.pod_applied(node.now, newest);
    node.settle();
    assert_eq!(node.written.len(), 1);
    assert!(node.state.next_deadline().is_none());
}

#[test]
fn a_typo_in_a_later_request_keeps_the_mapping_and_is_reported() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, rules) = (node.host_ports("a"), node.state.desired());
    let typo = r#"[{"containerPort":9040},{"containerPrt":53}]"#;
    let mut pod = node.shown("a");
    pod.record.annotation = Some(typo.into());
    node.applied(pod).settle();
    assert_eq!(
        (node.host_ports("a"), node.state.desired()),
        (ports.clone(), rules.clone())
    );
    let Condition {
        status, message, ..
    } = node.last().condition.clone().unwrap();
    let first = format!("10.0.0.11:{} -> 9040/TCP", node.host_ports("a")[0]);
    let other = format!("10.0.0.11:{} -> 9040/TCP", node.host_ports("a")[1]);
    assert!(
        message.contains(&first) || message.contains(&other),
        "{message}"
    );
    assert!(status && message.contains("containerPrt"), "{message}");
    assert_eq!(
        node.last().annotation.as_deref(),
        Some(typo),
        "the user's text stays"
    );
    let notes = node.notes(EventKind::InvalidRequest);
    assert!(
        notes.len() == 1 && notes[0].contains("containerPrt"),
        "{notes:?}"
    );
    assert_eq!(node.notes(EventKind::Released), [""; 0]);

    // a restarted enforcer knows the last valid request by the mark
    let seen = node.shown("a");
    let found = Recovered {
        held: rules.iter().map(|m| (m.protocol, m.host_port)).collect(),
        mappings: rules.clone(),
        intact: true,
        ..Recovered::default()
    };
    node.state = NodeState::recover(config("20000-29999"), 2, NOW, found);
    let written = node.written.len();
    node.applied(seen).settle();
    assert_eq!((node.host_ports("a"), node.state.desired()), (ports, rules));
    assert_eq!(node.written.len(), written, "nothing changed");

    // the corrected text counts
    let mut pod = node.shown("a");
    pod.record.annotation = Some(r#"[{"containerPort":53}]"#.into());
    node.applied(pod).settle();
    let entries = annotation::decode(node.last().annotation.as_deref().unwrap()).unwrap();
    assert_eq!(entries.len(), 1);
    let message = node.last().condition.clone().unwrap().message;
    assert!(!message.contains("containerPrt"), "{message}");
}

#[test]
fn a_typo_after_a_removal_maps_nothing() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    for text in [None, Some("yes please".to_owned())] {
        let mut pod = node.shown("a");
        pod.record.annotation = text;
        node.applied(pod).settle();
    }
    let reason = node.last().condition.clone().unwrap().reason;
    assert_eq!(
        (reason.as_str(), node.host_ports("a").len()),
        ("InvalidRequest", 0)
    );
}
