//! A pod is mapped at host addresses only.

use super::truth::mapped;
use super::*;

const OWN: &str = "10.0.0.11";
const MORE: &str = "203.0.113.7";

fn addresses(of: &[&str]) -> BTreeSet<IpAddr> {
    of.iter().map(|ip| ip.parse().unwrap()).collect()
}

impl Node {
    fn host_addresses(&mut self, of: &[&str]) -> &mut Self {
        self.state.host_addresses_read(self.now, addresses(of));
        self.settle()
    }
}

fn asking_for(host_ip: &str) -> PodFacts {
    let mut facts = facts("p1", Some("10.244.1.7"));
    let request = format!(r#"[{{"containerPort":9040,"hostIP":"{host_ip}"}}]"#);
    facts.record.annotation = Some(request);
    facts
}

#[test]
fn host_ip_of_another_machine_is_refused_and_the_message_names_the_addresses_there_are() {
    for foreign in ["10.0.0.12", MORE, "127.0.0.1", "224.0.0.1", "10.96.0.7"] {
        let mut node = Node::new("20000-20009");
        node.host_addresses(&[OWN, "10.0.0.13"]);
        node.applied(asking_for(foreign)).settle();
        let condition = node.last().condition.clone().unwrap();
        assert!(!condition.status, "{foreign}");
        assert_eq!(condition.reason, "HostIPNotOnNode");
        let expected = format!(
            "container port 9040/TCP cannot be mapped: hostIP {foreign} is no host address of this \
             node; it has 10.0.0.11, 10.0.0.13"
        );
        assert_eq!(condition.message, expected);
        assert_eq!(node.events(), [EventKind::HostIpNotOnNode]);
        assert_eq!(node.state.desired(), BTreeSet::new());
    }
}

#[test]
fn pod_is_mapped_when_its_host_ip_comes_and_unmapped_when_it_goes() {
    let mut node = Node::new("20000-20009");
    node.host_addresses(&[OWN]);
    node.applied(asking_for(MORE)).settle();
    assert_eq!(node.state.desired().len(), 0);
    node.host_addresses(&[OWN, MORE]);
    assert!(node.last().condition.as_ref().unwrap().status);
    assert_eq!(node.state.desired().len(), 1);
    let ports = node.host_ports("p1");
    node.host_addresses(&[OWN]);
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (false, "HostIPNotOnNode")
    );
    assert_eq!(node.state.desired(), BTreeSet::new());
    // the port is still the pod's
    node.host_addresses(&[OWN, MORE]);
    assert!(node.last().condition.as_ref().unwrap().status);
    assert_eq!(node.host_ports("p1"), ports);
}

#[test]
fn pod_is_not_mapped_while_the_node_has_no_host_address() {
    let mut node = Node::new("20000-20009");
    node.host_addresses(&[]);
    node.applied(facts("p1", Some("10.244.1.7"))).settle();
    let condition = node.last().condition.clone().unwrap();
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (false, "HostIPNotOnNode")
    );
    assert!(
        condition.message.contains("see --host-addresses"),
        "{}",
        condition.message
    );
    node.host_addresses(&[MORE]);
    let condition = node.last().condition.clone().unwrap();
    assert!(condition.status);
    // the address at which it answers, not the first one that the API names
    assert!(condition.message.starts_with(MORE), "{}", condition.message);
}

#[test]
fn restart_keeps_a_host_ip_that_the_rules_have() {
    let mut node = Node::new("20000-20009");
    node.host_addresses(&[OWN, MORE]);
    node.applied(asking_for(MORE)).settle();
    let mapped = node.state.desired();
    let found = Recovered {
        mappings: mapped.clone(),
        intact: true,
        host_addresses: addresses(&[OWN, MORE]),
        held: mapped.iter().map(|m| (m.protocol, m.host_port)).collect(),
        ..Recovered::default()
    };
    node.state = NodeState::recover(config("20000-20009"), 9, NOW, found);
    let shown = node.shown("p1");
    node.applied(shown).settle();
    assert_eq!(node.state.desired(), mapped);
}

#[test]
fn a_pod_of_a_family_that_the_node_does_not_have_is_not_mapped() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("fd00:244::2"))).settle();
    let at = ["192.0.2.11".parse().unwrap()];
    node.state.host_addresses_read(node.now, at.into());
    node.settle();
    assert!(!node.is_true("a"), "True at {}", node.message("a"));
    assert!(
        node.message("a").contains("family"),
        "{}",
        node.message("a")
    );
    let both = ["192.0.2.11", "2001:db8::11"].map(|ip| ip.parse().unwrap());
    node.state.host_addresses_read(node.now, both.into());
    node.settle();
    assert!(node.is_true("a"), "{}", node.message("a"));
    assert!(
        node.message("a").contains("[2001:db8::11]"),
        "{}",
        node.message("a")
    );
}

#[test]
fn a_pod_that_two_losses_in_turn_leave_unmapped_is_not_true_from_the_first_on() {
    let lasts = Duration::from_secs(2);
    let host: IpAddr = "192.0.2.11".parse().unwrap();
    let other: IpAddr = "2001:db8::11".parse().unwrap();
    for host_ip in [None, Some(other)] {
        let mut node = Node::new("20000-29999");
        node.state
            .host_addresses_read(node.now, [host, other].into());
        mapped(&mut node, "a", "fd00:244::2");
        if let Some(host_ip) = host_ip {
            let mut shown = node.shown("a");
            let request = format!(r#"[{{"containerPort":9040,"hostIP":"{host_ip}"}}]"#);
            shown.record.annotation = Some(request);
            node.applied(shown).settle();
            assert!(node.is_true("a"), "{}", node.message("a"));
        }
        node.state.host_addresses_read(node.now, [host].into());
        // the write that tells so fails, and is over before it is tried again
        for action in node.state.take_actions() {
            match action {
                Action::Publish(publication) => {
                    let uid = &publication.pod.uid;
                    node.state.published(node.now, uid, PublishOutcome::Failed);
                }
                Action::Program(plan) => node.state.programmed(node.now, &plan, Ok(())),
                _ => {}
            }
        }
        node.now += lasts / 20;
        node.down("s-a");
        node.now += lasts / 20 * 19;
        node.state.tick(node.now);
        node.settle();
        assert!(!node.is_true("a"), "{}", node.message("a"));
    }
}
