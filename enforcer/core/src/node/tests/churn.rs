//! A pod, or a namespace, that asks for other ports again and again.

use super::*;

/// A node where a namespace may have a quarter of the range at rest.
fn node(range: &str) -> Node {
    let mut node = Node::new(range);
    let config = Config {
        namespace_share: 25,
        ..config(range)
    };
    node.state = NodeState::new(config, 1);
    node.state.listed = true;
    node
}

/// Pod `a` asks for this container port.
fn asks(port: u16, protocol: &str) -> PodFacts {
    let mut facts = facts("a", Some("10.244.0.2"));
    facts.record.annotation = Some(format!(
        r#"[{{"containerPort":{port},"protocol":"{protocol}"}}]"#
    ));
    facts
}

fn free(node: &Node, protocol: portmapping_shared::Protocol) -> usize {
    let counts = node.state.counts();
    let of = counts.free.iter().find(|(of, _)| *of == protocol);
    of.unwrap().1
}

const TCP: portmapping_shared::Protocol = portmapping_shared::Protocol::Tcp;

#[test]
fn a_pod_that_asks_again_and_again_leaves_the_range_to_others_and_can_choose_no_port() {
    let mut node = node("20000-20999");
    let mut seen = BTreeSet::new();
    for port in 1..=170 {
        node.applied(asks(port, "TCP")).settle();
        assert!(node.last().condition.as_ref().unwrap().status);
        seen.extend(node.host_ports("a"));
        node.now += Duration::from_millis(100);
    }
    // three asks drew a port each; from the fourth on these serve
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert_eq!(free(&node, TCP), 997);
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    assert!(node.last().condition.as_ref().unwrap().status);
    // nothing is lost, and after the cool-down it draws again
    node.later(31);
    assert_eq!(free(&node, TCP), 998);
    node.applied(asks(200, "TCP")).settle();
    assert_eq!(node.state.counts().cooling, 1);
}

#[test]
fn a_port_that_never_had_a_rule_is_free_at_once() {
    let mut node = node("20000-20999");
    for port in 1..=170 {
        let mut facts = asks(port, "TCP");
        facts.pod_ips.clear();
        node.applied(facts).settle();
        assert_eq!(node.state.counts().cooling, 0);
        assert_eq!(free(&node, TCP), 999);
    }
    node.gone("a");
    assert_eq!(free(&node, TCP), 1000);
}

#[test]
fn a_pod_with_too_many_ports_at_rest_gets_no_new_one_and_its_condition_says_until_when() {
    let mut node = node("20000-20999");
    let last = [(1, "TCP"), (2, "TCP"), (3, "TCP"), (4, "UDP"), (5, "SCTP")];
    for (port, protocol) in last {
        node.applied(asks(port, protocol)).settle();
        node.now += Duration::from_secs(1);
    }
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(condition.reason, "NoFreePort");
    for part in [
        "4 ports that this pod had",
        "--max-cooling",
        "in about 28 s",
    ] {
        assert!(condition.message.contains(part), "{}", condition.message);
    }
    // its rests last as long as any other
    node.now = NOW + Duration::from_secs(30);
    node.later(0);
    assert!(node.host_ports("a").is_empty());
    node.later(1);
    assert!(node.last().condition.as_ref().unwrap().status);
    assert_eq!(node.state.counts().cooling, 3);
}

#[test]
fn pods_created_and_deleted_again_and_again_leave_the_range_to_other_namespaces() {
    let mut node = node("20000-20099");
    let one = |n: u16| {
        let mut facts = facts(&format!("pod-{n}"), Some("10.244.0.2"));
        facts.spec.containers[0].ports.truncate(1);
        facts
    };
    for n in 0..25 {
        node.applied(one(n)).settle();
        node.gone(&format!("pod-{n}"));
    }
    node.applied(one(25)).settle();
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(condition.reason, "NoFreePort");
    for part in [
        "25 TCP ports that pods of namespace ns had",
        "--namespace-share",
        "in about 31 s",
    ] {
        assert!(condition.message.contains(part), "{}", condition.message);
    }
    let mut other = one(26);
    other.pod.namespace = "other".into();
    node.applied(other).settle();
    assert!(node.last().condition.as_ref().unwrap().status);
    // a pod of the namespace that is created again under its name gets its port
    let mut again = one(3);
    again.pod.uid = "uid-again".parse().unwrap();
    node.applied(again).settle();
    assert_eq!(node.host_ports("again").len(), 1);
    node.later(30);
    assert_eq!(node.host_ports("pod-25").len(), 1);
}

#[test]
fn a_rollout_of_all_pods_of_a_full_node_is_not_delayed() {
    let mut node = node("20000-29999");
    let pod = |n: u32, round: u32| {
        let mut facts = facts(&format!("web-{n}-{round}"), Some("10.244.0.2"));
        facts.pod_ips = vec![std::net::Ipv4Addr::from(0x0af4_0000 + round * 200 + n).into()];
        let port = |container_port| DeclaredPort {
            container_port,
            ..DeclaredPort::default()
        };
        facts.spec.containers[0].ports = (9000..9008).map(port).collect();
        facts
    };
    for n in 0..110 {
        node.applied(pod(n, 0)).settle();
    }
    for n in 0..110 {
        node.applied(pod(n, 1)).settle();
        assert!(node.last().condition.as_ref().unwrap().status, "pod {n}");
        node.gone(&format!("web-{n}-0"));
    }
    assert_eq!(node.state.counts().cooling, 880);
    assert_eq!(node.notes(EventKind::NoFreePort), [""; 0]);
}
