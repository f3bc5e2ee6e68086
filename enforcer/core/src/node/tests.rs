//! The life of pods, step by step, with every answer given by hand.

use std::net::IpAddr;

use portmapping_shared::pod::{Container, DeclaredPort, ReadinessGate};
use portmapping_shared::{PodRef, PodSpec, annotation};

use super::*;
use crate::action::{Condition, Publication, Record};
use crate::plan::Plan;

const NOW: Duration = Duration::from_secs(1000);

fn config(range: &str) -> Config {
    Config {
        range: range.parse().unwrap(),
        excluded: PortSet::default(),
        cooldown: Duration::from_secs(30),
        quarantine: Duration::from_mins(1),
        max_ports: 64,
        ipv6: true,
    }
}

fn facts(name: &str, ip: Option<&str>) -> PodFacts {
    let ports = vec![
        DeclaredPort {
            container_port: 9040,
            ..DeclaredPort::default()
        },
        DeclaredPort {
            container_port: 53,
            protocol: "UDP".into(),
            ..DeclaredPort::default()
        },
    ];
    PodFacts {
        pod: PodRef {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").parse().unwrap(),
        },
        spec: PodSpec {
            containers: vec![Container {
                ports,
                ..Container::default()
            }],
            ..PodSpec::default()
        },
        record: Record {
            annotation: Some(String::new()),
            ..Record::default()
        },
        pod_ips: ip.into_iter().map(|ip| ip.parse().unwrap()).collect(),
        host_ips: vec!["10.0.0.11".parse().unwrap()],
        finished: false,
        deleting: false,
    }
}

/// A node whose keeper and kernel do as they are told.
struct Node {
    state: NodeState,
    now: Duration,
    told: Vec<(EventKind, String)>,
    written: Vec<Publication>,
    /// The pods of the API server, which tells of each write at once.
    pods: BTreeMap<PodUid, PodFacts>,
    echoes: bool,
}

impl Node {
    fn new(range: &str) -> Self {
        Self {
            state: NodeState::new(config(range), 1),
            now: NOW,
            told: Vec::new(),
            written: Vec::new(),
            pods: BTreeMap::new(),
            echoes: true,
        }
    }

    fn applied(&mut self, facts: PodFacts) -> &mut Self {
        self.pods.insert(facts.pod.uid.clone(), facts.clone());
        self.state.pod_applied(self.now, facts);
        self
    }

    /// Answers everything until nothing is asked any more.
    fn settle(&mut self) -> &mut Self {
        self.settle_with(|_| Ok(()), |_| Ok(()))
    }

    fn settle_with(
        &mut self,
        hold: impl Fn(PortKey) -> Result<(), String>,
        program: impl Fn(&Plan) -> Result<(), String>,
    ) -> &mut Self {
        loop {
            let actions = self.state.take_actions();
            if actions.is_empty() {
                return self;
            }
            for action in actions {
                match action {
                    Action::Hold(keys) => {
                        let outcomes = keys.into_iter().map(|key| (key, hold(key))).collect();
                        self.state.held(self.now, outcomes);
                    }
                    Action::Release(keys) => self.state.released(self.now, &keys),
                    Action::Program(plan) => {
                        let outcome = program(&plan);
                        self.state.programmed(self.now, &plan, outcome);
                    }
                    Action::Publish(publication) => {
                        self.written.push(publication.clone());
                        let uid = &publication.pod.uid;
                        self.state.published(self.now, uid, true);
                        if let Some(facts) = self.pods.get_mut(uid).filter(|_| self.echoes) {
                            facts.record = publication.wanted;
                            self.state.pod_applied(self.now, facts.clone());
                        }
                    }
                    Action::Event(event) => self.told.push((event.kind, event.note)),
                }
            }
        }
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self.state.tick(self.now);
        self.settle()
    }

    fn last(&self) -> &Record {
        &self.written.last().unwrap().wanted
    }

    fn events(&self) -> Vec<EventKind> {
        self.told.iter().map(|(kind, _)| *kind).collect()
    }

    fn host_ports(&self, name: &str) -> Vec<u16> {
        let status = self.state.status();
        let pod = status
            .pods
            .iter()
            .find(|pod| pod.uid.as_str() == format!("uid-{name}"));
        let mut ports: Vec<u16> = pod
            .into_iter()
            .flat_map(|pod| &pod.lease)
            .map(|lease| lease.host_port.get())
            .collect();
        ports.sort_unstable();
        ports
    }
}

/// The pod as the API shows it after our last write.
fn echoed(node: &Node, mut facts: PodFacts) -> PodFacts {
    facts.record = node.last().clone();
    facts
}

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
    let uid = publication.pod.uid.clone();
    node.state.published(NOW, &uid, true);
    let actions = node.state.take_actions();
    assert!(matches!(&actions[..], [Action::Event(event)] if event.kind == EventKind::Mapped));
}

#[test]
fn a_mapping_is_written_once_however_often_old_events_come() {
    let mut node = Node {
        echoes: false,
        ..Node::new("20000-20009")
    };
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    for _ in 0..3 {
        node.applied(facts("a", Some("10.244.0.2"))).settle();
    }
    let seen = echoed(&node, facts("a", Some("10.244.0.2")));
    node.applied(seen).settle();
    assert_eq!(
        (node.written.len(), node.events()),
        (1, vec![EventKind::Mapped])
    );
}

#[test]
fn a_result_reset_by_its_user_is_written_again_with_the_same_ports() {
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
fn a_narrower_request_lets_go_of_the_rest() {
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
fn a_moved_sandbox_takes_its_ports_along() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let ports = node.host_ports("a");
    let mut moved = echoed(&node, facts("a", Some("10.244.0.3")));
    moved.pod_ips = vec!["10.244.0.3".parse().unwrap()];
    node.applied(moved).settle();
    assert_eq!(node.host_ports("a"), ports);
    let to: IpAddr = "10.244.0.3".parse().unwrap();
    assert!(
        node.state
            .desired()
            .iter()
            .all(|mapping| mapping.pod_ip == to)
    );
}

#[test]
fn of_two_pods_with_one_address_the_newer_has_it() {
    let mut node = Node::new("20000-20009");
    node.applied(facts("old", Some("10.244.0.2"))).settle();
    node.applied(facts("new", Some("10.244.0.2"))).settle();
    let owners: BTreeSet<String> = node
        .state
        .desired()
        .iter()
        .map(|mapping| mapping.owner.to_string())
        .collect();
    assert_eq!(owners, BTreeSet::from(["uid-new".to_owned()]));
}

#[test]
fn a_released_port_rests_before_anyone_gets_it() {
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
fn exhaustion_tells_the_numbers_once() {
    let mut node = Node::new("20000-20001");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.applied(facts("b", Some("10.244.0.3"))).settle();
    node.applied(facts("c", Some("10.244.0.4"))).settle();
    let notes: Vec<&String> = node
        .told
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
fn a_stranger_on_a_fresh_port_costs_nobody_anything() {
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
fn a_mapped_port_in_a_strangers_hands_is_told_and_taken_back() {
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
        "the rules win over the stranger's socket"
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
fn a_kernel_that_refuses_is_asked_again_and_people_are_told() {
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
fn flushed_rules_come_back_and_their_pods_are_told() {
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

fn recovered(node: &Node) -> Recovered {
    let mappings = node.state.desired();
    let held = mappings
        .iter()
        .map(|mapping| (mapping.protocol, mapping.host_port))
        .collect();
    Recovered {
        mappings,
        intact: true,
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
fn a_pod_that_went_during_a_restart_is_unmapped_at_the_first_list() {
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
fn unheld_ports_are_held_before_the_api_is_asked() {
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
        elsewhere: before.mappings.clone(),
        intact: false,
        ..before
    };
    node.told.clear();
    node.state = NodeState::recover(config("20000-29999"), 9, NOW, found);
    let actions = node.state.take_actions();
    let [Action::Program(plan)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((plan.to_create.len(), plan.to_remove.len()), (2, 0));
    node.state.programmed(NOW, &plan.clone(), Ok(()));
    node.settle().applied(seen).settle();
    assert_eq!(node.host_ports("a"), ports);
    assert_eq!(node.events(), [], "nothing had been damaged");
}

#[test]
fn after_a_reboot_a_pod_has_its_old_ports_if_they_are_free() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let (ports, seen) = (
        node.host_ports("a"),
        echoed(&node, facts("a", Some("10.244.0.2"))),
    );
    node.state = NodeState::new(config("20000-29999"), 77);
    node.applied(seen).settle();
    assert_eq!(node.host_ports("a"), ports);
    // a port that is not of our range is no wish that counts
    let mut forged = facts("b", Some("10.244.0.3"));
    forged.record.annotation = Some(
        r#"[{"hostPort":22,"containerPort":9040,"protocol":"TCP","podName":"b","podIP":"10.9.9.9"}]"#.into(),
    );
    node.applied(forged).settle();
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
fn a_finished_pod_is_unmapped_and_its_result_taken_back() {
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
fn removing_the_annotation_leaves_nothing_of_ours() {
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
fn a_pod_that_asks_for_nothing_is_never_written() {
    let mut node = Node::new("20000-20009");
    let mut plain = facts("plain", Some("10.244.0.2"));
    plain.record.annotation = None;
    let mut empty = facts("empty", Some("10.244.0.3"));
    empty.spec.containers.clear();
    node.applied(plain).applied(empty).settle();
    assert!(node.written.is_empty() && node.told.is_empty());
    assert!(node.state.status().pods.is_empty());
}

#[test]
fn nonsense_is_told_and_maps_nothing() {
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
        "the user's words stay"
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
}

#[test]
fn a_host_ip_of_a_family_the_pod_lacks_is_told() {
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

#[test]
fn a_write_the_api_server_refuses_is_tried_again() {
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
                    node.state.published(node.now, &publication.pod.uid, false);
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
fn one_pod_that_the_kernel_refuses_stops_nobody_else() {
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
    assert_eq!(refused.len(), 1, "nobody is told of a neighbour's trouble");
    assert_eq!(refused[0].pod.name, "p7");
    let message = &refused[0].wanted.condition.as_ref().unwrap().message;
    assert!(message.contains("no such protocol"), "{message}");
}
