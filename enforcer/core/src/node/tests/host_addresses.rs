//! A pod is mapped at host addresses only.

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
