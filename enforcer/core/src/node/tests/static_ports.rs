//! Static hostPorts of other pods.

use portmapping_shared::{HostPort, Protocol};

use super::*;

/// A pod that claims this host port, on this node address.
fn fixed(name: &str, port: i64, host_ip: &str) -> PodFacts {
    let mut facts = facts(name, Some("10.244.9.9"));
    facts.record.annotation = None;
    facts.spec.containers[0].ports = vec![DeclaredPort {
        container_port: 80,
        host_port: port,
        host_ip: host_ip.into(),
        ..DeclaredPort::default()
    }];
    facts
}

/// A node with pod `a` mapped at TCP 20000 alone.
fn mapped(range: &str, request: &str) -> Node {
    let mut node = Node::new(range);
    let mut a = facts("a", Some("10.244.0.2"));
    a.record.annotation = Some(request.into());
    node.applied(a).settle();
    node
}

const ONE: &str = r#"[{"containerPort":9040}]"#;

#[test]
fn the_rules_are_told_the_static_ports_of_the_range_that_no_pod_has_at_another_address() {
    let mut node = Node::new("20000-20002");
    for port in [20_001, 20_002, 30_000] {
        node.applied(fixed(&format!("web-{port}"), port, ""))
            .settle();
    }
    let tcp = |number| (Protocol::Tcp, HostPort::new(number).unwrap());
    let unlisted = NodeState::new(config("20000-20002"), 1);
    assert_eq!(unlisted.static_ports(), None);
    let both = BTreeSet::from([tcp(20_001), tcp(20_002)]);
    assert_eq!(node.state.static_ports(), Some(both));
    node.gone("web-20002");
    assert_eq!(node.state.static_ports(), Some([tcp(20_001)].into()));
}

#[test]
fn a_mapped_pod_gives_its_port_to_a_static_host_port_and_both_get_an_event() {
    let mut node = mapped("20000-20000", ONE);
    assert_eq!(node.host_ports("a"), [20_000]);
    node.state.pod_gone(node.now, &"uid-none".parse().unwrap());
    node.applied(fixed("web", 20_000, "")).settle();
    assert!(node.host_ports("a").is_empty() && node.state.desired().is_empty());
    let notes = node.notes(EventKind::PortConflict);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(
        notes[0].contains("static hostPort of pod ns/web"),
        "{}",
        notes[0]
    );
    assert!(
        notes[1].contains("mapped to pod ns/a until now"),
        "{}",
        notes[1]
    );
    assert_eq!(node.last().condition.as_ref().unwrap().reason, "NoFreePort");
    // the number belongs to the other pod by now
    let asked = r#"[{"containerPort":9040,"protocol":"TCP"}]"#;
    assert_eq!(node.last().annotation.as_deref(), Some(asked));
    // the same pod is shown again: no new event
    node.applied(fixed("web", 20_000, "")).settle();
    assert_eq!(node.notes(EventKind::PortConflict).len(), 2);
    // the port is free when the static pod is gone, but not before it would have rested
    node.gone("web").later(29);
    assert!(node.host_ports("a").is_empty());
    node.later(1);
    assert_eq!(node.host_ports("a"), [20_000]);
    assert!(node.last().condition.as_ref().unwrap().status);
}

#[test]
fn a_pod_that_lost_its_port_is_published_with_its_new_one() {
    let mut node = mapped("20000-20001", ONE);
    let before = node.host_ports("a")[0];
    node.applied(fixed("web", before.into(), "0.0.0.0"))
        .settle();
    let after = node.host_ports("a")[0];
    assert_ne!(before, after);
    let entries = annotation::decode(node.last().annotation.as_deref().unwrap()).unwrap();
    assert_eq!(entries[0].host_port, after);
    assert!(node.notes(EventKind::ForgedResult).is_empty());
}

#[test]
fn the_port_is_closed_without_a_rest_because_the_static_pod_may_bind_it() {
    let mut node = mapped("20000-20009", ONE);
    let port = node.host_ports("a")[0];
    let mut host = fixed("host", 0, "");
    host.spec.host_network = true;
    host.spec.containers[0].ports[0].container_port = port.into();
    node.applied(host);
    let key: PortKey = (
        portmapping_shared::Protocol::Tcp,
        portmapping_shared::HostPort::new(port).unwrap(),
    );
    let mut released = false;
    for _ in 0..4 {
        for action in node.state.take_actions() {
            match action {
                Action::Program(plan) => node.state.programmed(node.now, &plan, Ok(())),
                Action::Release(keys) => released |= keys.contains(&key),
                Action::Hold(keys) => {
                    let held = keys.into_iter().map(|key| (key, Ok(()))).collect();
                    node.state.held(node.now, held);
                }
                Action::Publish(_) | Action::Event(_) | Action::ReadPod { .. } => {}
            }
        }
    }
    assert!(released);
}

#[test]
fn other_addresses_and_protocols_do_not_conflict() {
    let asked = r#"[{"containerPort":9040,"hostIP":"10.0.0.11"}]"#;
    let mut node = mapped("20000-20000", asked);
    node.applied(fixed("web", 20_000, "10.0.0.12")).settle();
    let mut udp = fixed("dns", 20_000, "");
    udp.spec.containers[0].ports[0].protocol = "UDP".into();
    node.applied(udp).settle();
    assert_eq!(node.host_ports("a"), [20_000]);
    assert!(node.notes(EventKind::PortConflict).is_empty());
    node.applied(fixed("all", 20_000, "::")).settle();
    assert!(node.host_ports("a").is_empty());
}

#[test]
fn a_resting_port_that_becomes_static_is_closed() {
    let mut node = mapped("20000-20000", ONE);
    node.gone("a");
    assert_eq!(node.state.counts().cooling, 1);
    node.applied(fixed("web", 20_000, "")).settle();
    assert_eq!(node.state.counts().cooling, 0);
    // no pod may reclaim it
    let mut again = facts("a", Some("10.244.0.3"));
    again.pod.uid = "uid-a2".parse().unwrap();
    node.applied(again).settle();
    assert_eq!(node.last().condition.as_ref().unwrap().reason, "NoFreePort");
}

#[test]
fn a_static_port_takes_the_port_of_a_pod_that_only_the_kernel_knows() {
    let node = mapped("20000-20000", ONE);
    let mappings = node.state.desired();
    let found = Recovered {
        held: mappings.iter().map(|m| (m.protocol, m.host_port)).collect(),
        mappings,
        intact: true,
        host_addresses: BTreeSet::new(),
        ..Recovered::default()
    };
    let mut node = Node {
        state: NodeState::recover(config("20000-20000"), 1, NOW, found),
        ..Node::new("20000-20000")
    };
    node.applied(fixed("web", 20_000, "")).settle();
    assert!(node.state.desired().is_empty());
    let notes = node.notes(EventKind::PortConflict);
    assert!(
        notes.len() == 1 && notes[0].contains("with uid uid-a"),
        "{notes:?}"
    );
}

#[test]
fn a_pod_that_never_runs_unmaps_no_other_pod() {
    let mut node = mapped("20000-20000", ONE);
    let mut web = fixed("web", 20_000, "");
    web.pod_ips.clear();
    let mut host = web.clone();
    host.pod.uid = "uid-host".parse().unwrap();
    host.pod.name = "host".into();
    host.spec.host_network = true;
    host.spec.containers[0].ports[0].container_port = 20_000;
    host.started = false;
    // the kubelet reports the node's address for it at once
    host.pod_ips = host.host_ips.clone();
    node.applied(web.clone()).applied(host.clone()).settle();
    assert_eq!(node.host_ports("a"), [20_000]);
    assert_eq!(node.notes(EventKind::PortConflict), [""; 0]);
    // each of them takes the number once it has a sandbox
    let mut node = mapped("20000-20000", ONE);
    node.applied(web).settle();
    node.up(sandbox("web", "s-web", "10.244.9.9", 1));
    assert!(node.host_ports("a").is_empty());
    let mut node = mapped("20000-20000", ONE);
    host.started = true;
    node.applied(host).settle();
    assert!(node.host_ports("a").is_empty());
}

#[test]
fn a_pod_with_many_static_ports_takes_no_more_than_the_limit_for_one_pod() {
    let mut node = mapped("20000-20099", r#"[{"containerPort":9040}]"#);
    let number = node.host_ports("a")[0];
    let mut greedy = fixed("greedy", 0, "");
    // 64 smaller numbers first, then the mapped one
    let numbers = (19_900..19_964).chain([i64::from(number)]);
    let port = |host_port| DeclaredPort {
        container_port: 80,
        host_port,
        ..DeclaredPort::default()
    };
    greedy.spec.containers[0].ports = numbers.map(port).collect();
    node.applied(greedy.clone()).settle();
    // a change of the pod tells nothing new
    node.applied(greedy).settle();
    assert_eq!(node.host_ports("a"), [number]);
    let notes = node.notes(EventKind::PortConflict);
    assert!(
        notes.len() == 1 && notes[0].contains("stays mapped to pod ns/a"),
        "{notes:?}"
    );
}

#[test]
fn the_pods_of_one_namespace_take_no_more_numbers_than_its_share_of_the_range() {
    let mut node = Node::new("20000-20099");
    node.state.config.namespace_share = 10;
    let mut a = facts("a", Some("10.244.0.2"));
    a.record.annotation = Some(ONE.into());
    a.pod.namespace = "victim".into();
    node.applied(a).settle();
    let number = node.host_ports("a")[0];
    let port = |host_port| DeclaredPort {
        container_port: 80,
        host_port,
        ..DeclaredPort::default()
    };
    let others = (20_000..20_100).filter(|other| *other != i64::from(number));
    for (n, taken) in (0..).zip(others.take(10)) {
        let mut one = fixed(&format!("fixed-{n}"), taken, "");
        one.pod_ips = vec![std::net::Ipv4Addr::new(10, 244, 8, n).into()];
        node.applied(one).settle();
    }
    let mut greedy = fixed("greedy", 0, "");
    greedy.spec.containers[0].ports = vec![port(number.into())];
    node.applied(greedy.clone()).settle();
    assert_eq!(node.host_ports("a"), [number]);
    let notes = node.notes(EventKind::PortConflict);
    assert!(
        notes.len() == 1 && notes[0].contains("of one namespace only 10 (--namespace-share)"),
        "{notes:?}"
    );
    // a pod of another namespace may take it, and one of the same when another ends
    node.gone("fixed-3");
    assert_ne!(node.host_ports("a"), [number]);
}
