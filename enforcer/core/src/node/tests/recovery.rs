//! How a new enforcer continues from what it finds.

use super::*;

fn recovered(node: &Node) -> Recovered {
    let mappings = node.state.desired();
    let held = mappings
        .iter()
        .map(|mapping| (mapping.protocol, mapping.host_port))
        .collect();
    Recovered {
        mappings,
        intact: true,
        host_addresses: BTreeSet::new(),
        held,
        ..Recovered::default()
    }
}

#[test]
fn a_restart_changes_nothing() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, seen) = (
        node.host_ports("a"),
        echoed(&node, facts("a", Some("10.244.0.2"))),
    );
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, recovered(&node));
    assert_eq!(node.state.take_actions(), []);
    node.applied(seen.clone());
    node.state.relisted(NOW, &[seen.pod.uid].into());
    assert_eq!(node.state.take_actions(), []);
    assert_eq!(node.host_ports("a"), ports);
}

#[test]
fn after_a_restart_of_the_node_no_pod_is_true_before_it_is_mapped() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, seen) = (
        node.host_ports("a"),
        echoed(&node, facts("a", Some("10.244.0.2"))),
    );
    // rules and holds are gone, and the API has what it had before
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, Recovered::default());
    node.written.clear();
    node.applied(seen.clone());
    node.state.relisted(NOW, &[seen.pod.uid].into());
    node.settle();
    let conditions = node.written.iter().map(|it| it.wanted.condition.clone());
    let told: Vec<_> = conditions
        .map(|it| it.is_some_and(|it| it.status))
        .collect();
    assert_eq!(told, [false, true]);
    assert_eq!(node.host_ports("a"), ports);
}

#[test]
fn a_pod_that_was_deleted_during_a_restart_is_unmapped_at_the_first_list() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state = NodeState::recover(config("20000-20009"), 9, NOW, recovered(&node));
    node.state.relisted(NOW, &BTreeSet::new());
    let actions = node.state.take_actions();
    let [Action::Program(plan)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((plan.to_remove.len(), plan.to_create.len()), (2, 0));
}

#[test]
fn ports_that_are_not_held_are_held_before_the_api_is_asked() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let found = Recovered {
        held: BTreeSet::new(),
        ..recovered(&node)
    };
    node.state = NodeState::recover(config("20000-20009"), 9, NOW, found);
    let actions = node.state.take_actions();
    assert!(
        matches!(&actions[..], [Action::Hold(keys)] if keys.len() == 2),
        "{actions:?}"
    );
}

#[test]
fn mappings_of_another_backend_are_taken_over() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, seen) = (
        node.host_ports("a"),
        echoed(&node, facts("a", Some("10.244.0.2"))),
    );
    let before = recovered(&node);
    let found = Recovered {
        mappings: BTreeSet::new(),
        in_other_backends: before.mappings.clone(),
        intact: false,
        host_addresses: BTreeSet::new(),
        ..before
    };
    node.emitted.clear();
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
    let actions = node.state.take_actions();
    let [Action::Program(plan)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((plan.to_create.len(), plan.to_remove.len()), (2, 0));
    node.state.programmed(NOW, &plan.clone(), Ok(()));
    node.settle().applied(seen).settle();
    assert_eq!(node.host_ports("a"), ports);
    assert_eq!(node.events(), [], "nothing was damaged");
}

#[test]
fn after_a_reboot_a_pod_gets_its_old_ports_if_they_are_free() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, seen) = (
        node.host_ports("a"),
        echoed(&node, facts("a", Some("10.244.0.2"))),
    );
    node.state = NodeState::new(config("20000-29999"), 77);
    node.applied(seen).settle();
    assert_eq!(node.host_ports("a"), ports);
    // a port outside the range is ignored
    let mut forged = facts("b", Some("10.244.0.3"));
    forged.record.annotation = Some(
        r#"[{"hostPort":22,"containerPort":9040,"protocol":"TCP","podName":"b","podIP":"10.9.9.9"}]"#.into(),
    );
    node.applied(forged).listed().settle();
    assert!(
        node.host_ports("b")
            .iter()
            .all(|port| (20_000..30_000).contains(port))
    );
    assert!(
        node.last()
            .annotation
            .as_deref()
            .unwrap()
            .contains(r#""podIP":"10.244.0.3""#)
    );
}

#[test]
fn a_port_that_a_pod_got_again_rests_although_it_has_no_rule_yet() {
    let mut node = Node::new("20000-20009");
    node.applied(one_port("a")).settle();
    let mut seen = echoed(&node, one_port("a"));
    // its sandbox is gone, too
    seen.pod_ips.clear();
    node.state = NodeState::new(config("20000-20009"), 77);
    node.applied(seen).listed().settle();
    assert!(node.state.desired().is_empty());
    node.gone("a");
    assert_eq!(node.state.counts().cooling, 1, "its clients know the port");
    node.later(31);
    assert_eq!(node.state.counts().cooling, 0);
}

#[test]
fn a_pod_whose_rules_were_flushed_during_a_restart_gets_its_held_ports() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, seen) = (
        node.host_ports("a"),
        echoed(&node, facts("a", Some("10.244.0.2"))),
    );
    let found = Recovered {
        mappings: BTreeSet::new(),
        intact: false,
        host_addresses: BTreeSet::new(),
        ..recovered(&node)
    };
    node.state = NodeState::recover(config("20000-20009"), 9, NOW, found);
    // another pod that asks first gets none of them
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    assert!(
        node.host_ports("b")
            .iter()
            .all(|port| !ports.contains(port))
    );
    node.applied(seen).listed().settle();
    assert_eq!(node.host_ports("a"), ports);
    assert_eq!(node.host_ports("b").len(), 2);
}

#[test]
fn after_a_reboot_no_pod_gets_the_port_that_a_later_one_had() {
    // every draw from two ports hits the other pod's with a probability of one half
    for seed in 0..32 {
        let mut node = Node::new("20000-20000");
        node.applied(one_port("old")).settle();
        let old = echoed(&node, one_port("old"));
        // this one names the port too, and its condition does not
        let mut other = one_port("other");
        let name = |text: &String| text.replace("old", "other");
        other.record.annotation = old.record.annotation.as_ref().map(name);
        let condition = old.record.condition.clone().unwrap();
        other.record.condition = Some(Condition {
            status: false,
            reason: "NoFreePort".into(),
            ..condition
        });
        node.pods.clear();
        node.state = NodeState::new(config("20000-20002"), seed);
        node.applied(one_port("new")).applied(other);
        assert_eq!(node.host_ports("new"), [0_u16; 0], "a draw before the list");
        assert_eq!(node.host_ports("other"), [0_u16; 0]);
        if seed % 2 == 0 {
            // the pod that had it is known only when the list is complete
            node.applied(old).listed();
        } else {
            node.applied(old);
            assert_eq!(node.host_ports("old"), [20_000], "it need not wait");
            node.listed();
        }
        node.settle();
        assert_eq!(node.host_ports("old"), [20_000]);
        assert_eq!(node.host_ports("new").len(), 1);
        assert_eq!(node.host_ports("other").len(), 1);
    }
}

#[test]
fn a_port_that_a_waiting_pod_had_is_drawn_where_that_pod_cannot_be_served() {
    let mut node = Node::new("20000-20000");
    node.applied(one_port("big")).settle();
    let mut big = echoed(&node, one_port("big"));
    node.pods.clear();
    node.state = NodeState::new(config("20000-20001"), 1);
    // three ports are more than there are
    let ports = &mut big.spec.containers[0].ports;
    ports.extend([9041, 9042].map(|container_port| DeclaredPort {
        container_port,
        ..DeclaredPort::default()
    }));
    big.record.mark = None;
    let two = r#"[{"containerPort":9040},{"containerPort":9041}]"#;
    let mut small = one_port("small");
    small.record.annotation = Some(two.into());
    node.applied(big).applied(small).listed().settle();
    assert_eq!(node.host_ports("small"), [20_000, 20_001]);
    assert_eq!(node.host_ports("big"), [0_u16; 0]);
}

#[test]
fn a_condition_that_became_false_before_the_list_still_confirms_the_port() {
    let mut node = Node::new("20000-20000");
    node.applied(one_port("old")).settle();
    let mut old = echoed(&node, one_port("old"));
    let mut other = one_port("other");
    let name = |text: &String| text.replace("old", "other");
    other.record.annotation = old.record.annotation.as_ref().map(name);
    other.record.condition = Some(Condition {
        status: false,
        reason: "NoFreePort".into(),
        message: String::new(),
    });
    // it needs one more port now, so it waits for the list
    let ports = &mut old.spec.containers[0].ports;
    ports.push(DeclaredPort {
        container_port: 9041,
        ..DeclaredPort::default()
    });
    old.record.mark = None;
    for seed in 0..32 {
        node.pods.clear();
        node.state = NodeState::new(config("20000-20002"), seed);
        node.applied(other.clone()).applied(old.clone());
        node.settle().later(3);
        let condition = node.shown("old").record.condition;
        assert!(condition.is_some_and(|condition| !condition.status));
        node.listed().settle();
        // the other one is served first, and draws another one
        assert!(node.host_ports("old").contains(&20_000));
        assert_eq!(node.host_ports("other").len(), 1);
    }
}

/// A pod that asks for one TCP port.
fn one_port(name: &str) -> PodFacts {
    let mut facts = facts(name, Some("10.244.0.2"));
    facts.spec.containers[0].ports.truncate(1);
    facts
}

#[test]
fn a_recovered_pod_follows_its_sandbox_before_the_api_shows_it() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2")));
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, recovered(&node));
    let listed = vec![
        sandbox("a", "s2", "10.244.0.9", 2),
        // an unknown pod has the other's address by now
        sandbox("c", "s3", "10.244.0.3", 3),
    ];
    node.state.sandboxes_listed(NOW, listed);
    node.settle();
    assert_eq!(node.leads_to("a"), ["10.244.0.9".to_owned()].into());
    assert!(node.leads_to("b").is_empty());
    node.down("s2");
    assert!(node.state.desired().is_empty());
}

#[test]
fn a_recovered_pod_whose_sandbox_ends_is_unmapped_before_the_api_shows_it() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, recovered(&node));
    node.up(sandbox("a", "s1", "10.244.0.2", 1));
    assert_eq!(node.leads_to("a").len(), 1);
    node.down("s1");
    assert!(node.state.desired().is_empty());
}

#[test]
fn only_one_of_two_pods_with_one_port_in_the_kernel_keeps_it() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let mut found = recovered(&node);
    let copies = found
        .mappings
        .iter()
        .map(|mapping| portmapping_shared::Mapping {
            owner: "uid-z".parse().unwrap(),
            ..mapping.clone()
        });
    found.in_other_backends = copies.collect();
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
    node.settle();
    assert_eq!(node.leads_to("z"), BTreeSet::new());
    assert_eq!(node.host_ports("z"), [0_u16; 0]);
    assert_eq!(node.leads_to("a").len(), 1);
}

#[test]
fn one_host_port_of_two_found_for_a_container_port_stays() {
    for other in [20_000, 29_999] {
        let mut node = Node::new("20000-29999");
        node.applied(facts("a", Some("10.244.0.2"))).settle();
        let (ports, seen) = (node.host_ports("a"), node.shown("a"));
        let mut found = recovered(&node);
        // a crash between a new rule and the removal of the old one
        let doubled = found.mappings.iter().map(|mapping| Mapping {
            host_port: portmapping_shared::HostPort::new(other).unwrap(),
            ..mapping.clone()
        });
        found.mappings.extend(doubled.collect::<Vec<_>>());
        found.held = found
            .mappings
            .iter()
            .map(|m| (m.protocol, m.host_port))
            .collect();
        node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
        node.applied(seen).settle();
        assert_eq!(
            node.host_ports("a"),
            ports,
            "the ones that the result names"
        );
        assert_eq!(node.state.desired().len(), 2);
    }
}
