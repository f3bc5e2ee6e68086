//! The condition is True if and only if the pod is mapped.

use super::*;

/// A mapped pod whose address comes from its sandbox `s1`, and then from the API too.
pub(super) fn mapped(node: &mut Node, name: &str, ip: &str) {
    node.applied(facts(name, None)).settle();
    node.up(sandbox(name, &format!("s-{name}"), ip, 1));
    let mut shown = node.shown(name);
    shown.pod_ips = vec![ip.parse().unwrap()];
    node.applied(shown).settle();
    assert!(node.is_true(name));
}

impl Node {
    pub(super) fn is_true(&self, name: &str) -> bool {
        let condition = self.shown(name).record.condition;
        condition.is_some_and(|condition| condition.status)
    }

    pub(super) fn message(&self, name: &str) -> String {
        self.shown(name).record.condition.unwrap().message
    }

    /// Answers the last read: the pod runs at these addresses.
    fn read(&mut self, running_at: &[&str]) -> &mut Self {
        let (pod, asked) = self.reads.last().unwrap().clone();
        let running_at: Vec<IpAddr> = running_at.iter().map(|ip| ip.parse().unwrap()).collect();
        self.state.pod_read(self.now, &pod.uid, asked, &running_at);
        self.settle()
    }
}

#[test]
fn a_pod_whose_result_was_wiped_is_unmapped_at_once_and_mapped_again_when_the_api_confirms_it() {
    let mut node = Node::new("20000-29999");
    mapped(&mut node, "a", "10.244.0.2");
    let ports = node.host_ports("a");
    node.down("s-a");
    assert!(
        node.leads_to("a").is_empty(),
        "another pod may have the address"
    );
    assert!(!node.is_true("a"), "True while unmapped");
    node.later(2);
    assert!(
        node.message("a").contains("result"),
        "{}",
        node.message("a")
    );
    assert!(node.reads.is_empty(), "the kubelet may not know yet");
    node.later(1);
    assert_eq!(node.reads.len(), 1);
    node.read(&["10.244.0.2"]);
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    assert!(node.is_true("a"));
    assert_eq!(node.host_ports("a"), ports);
    assert_eq!(node.state.next_deadline(), None);
}

#[test]
fn the_sandbox_of_a_pod_that_has_ended_costs_no_write_of_its_own() {
    let mut node = Node::new("20000-29999");
    mapped(&mut node, "a", "10.244.0.2");
    // the kubelet reports that all containers have ended, and removes the sandbox after that
    let mut finished = node.shown("a");
    finished.finished = true;
    let writes = node.written.len();
    node.applied(finished).settle().down("s-a").later(30);
    assert_eq!(node.shown("a").record.condition.unwrap().reason, "Released");
    assert_eq!((node.written.len(), node.reads.len()), (writes + 1, 0));
}

#[test]
fn a_wiped_pod_stays_unmapped_while_the_api_does_not_confirm_its_address() {
    let mut node = Node::new("20000-29999");
    mapped(&mut node, "a", "10.244.0.2");
    node.down("s-a").later(3);
    // not running, or being deleted
    node.read(&[]);
    assert!(node.leads_to("a").is_empty());
    node.later(2);
    assert_eq!(node.reads.len(), 2, "it is read again");
    node.read(&["10.244.0.9"]);
    assert!(node.leads_to("a").is_empty(), "another address");
    // another pod's sandbox has the address by now
    let late = node.now.as_secs();
    node.up(sandbox("b", "s-b", "10.244.0.2", late)).later(4);
    assert_eq!(node.reads.len(), 3);
    node.read(&["10.244.0.2"]);
    assert!(node.leads_to("a").is_empty() && !node.is_true("a"));
    node.down("s-b").later(8);
    node.read(&["10.244.0.2"]);
    assert_eq!(node.leads_to("a").len(), 1);
    assert!(node.is_true("a"));
}

#[test]
fn a_read_from_before_another_removal_confirms_nothing() {
    let mut node = Node::new("20000-29999");
    mapped(&mut node, "a", "10.244.0.2");
    node.down("s-a").later(3);
    let old = node.reads[0].clone();
    node.up(sandbox("a", "s2", "10.244.0.2", 2)).down("s2");
    let confirmed = ["10.244.0.2".parse().unwrap()];
    let now = node.now;
    node.state.pod_read(now, &old.0.uid, old.1, &confirmed);
    node.settle();
    assert!(node.leads_to("a").is_empty());
    node.later(3);
    assert_eq!(node.reads.len(), 2);
    node.state.pod_read(node.now, &old.0.uid, old.1, &confirmed);
    node.settle();
    assert!(
        node.leads_to("a").is_empty(),
        "the late answer of the first"
    );
    node.read(&["10.244.0.2"]);
    assert_eq!(node.leads_to("a").len(), 1);
}

#[test]
fn an_ordinary_deletion_costs_no_read_and_no_write() {
    let mut node = Node::new("20000-29999");
    mapped(&mut node, "a", "10.244.0.2");
    let mut deleting = node.shown("a");
    deleting.deleting = true;
    node.applied(deleting.clone()).settle();
    let writes = node.written.len();
    node.down("s-a").later(4);
    deleting = node.shown("a");
    deleting.finished = true;
    node.applied(deleting).settle().gone("a");
    node.later(30);
    assert_eq!((node.written.len(), node.reads.len()), (writes, 0));
}

#[test]
fn a_leftover_result_of_an_unknown_pod_does_not_take_a_living_pods_address() {
    let mut node = Node::new("20000-29999");
    let first_reported = node.now.as_secs();
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.up(sandbox("ghost", "s1", "10.244.0.2", first_reported - 1));
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    node.later(10);
    assert!(node.is_true("a"));
    // a pod that the API has not shown yet
    node.up(sandbox("new", "s2", "10.244.0.2", first_reported + 1));
    assert!(node.leads_to("a").is_empty());
    node.later(2);
    assert!(!node.is_true("a"), "True while unmapped");
    assert!(node.message("a").contains("newer sandbox"));
    node.down("s2");
    assert!(node.is_true("a") && !node.leads_to("a").is_empty());
}

#[test]
fn a_leftover_result_that_is_read_late_does_not_take_the_address_of_a_pods_result() {
    let mut node = Node::new("20000-29999");
    let first_reported = node.now.as_secs();
    node.up(sandbox("a", "s-a", "10.244.0.2", first_reported - 2));
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.up(sandbox("ghost", "s1", "10.244.0.2", first_reported - 1));
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    node.later(10);
    assert!(node.is_true("a"));
    // a pod that the API has not shown yet
    node.up(sandbox("new", "s2", "10.244.0.2", first_reported + 1));
    assert!(node.leads_to("a").is_empty());
}

#[test]
fn a_leftover_result_found_at_the_start_does_not_take_a_living_pods_address() {
    let mut node = Node::new("20000-29999");
    node.up(sandbox("ghost", "s1", "10.244.0.2", 1));
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    assert_eq!(node.leads_to("a"), ["10.244.0.2".to_owned()].into());
    // the API shows the pod after all: its sandbox is the newer one
    node.applied(facts("ghost", None)).settle();
    assert!(node.leads_to("a").is_empty());
}

#[test]
fn a_dual_stack_pod_that_lost_one_address_is_not_mapped() {
    let mut node = Node::new("20000-29999");
    let mut dual = facts("a", Some("10.244.0.2"));
    dual.pod_ips.push("fd00:244::2".parse().unwrap());
    dual.host_ips.push("fd00::11".parse().unwrap());
    node.applied(dual).settle();
    assert!(node.is_true("a"));
    let late = node.now.as_secs() + 1;
    node.up(sandbox("new", "s1", "10.244.0.2", late)).later(2);
    assert_eq!(node.leads_to("a"), ["fd00:244::2".to_owned()].into());
    assert!(!node.is_true("a"), "True without a rule for IPv4");
    node.down("s1");
    assert!(node.is_true("a"));
}

#[test]
fn a_family_that_the_node_does_not_have_needs_no_rule() {
    let mut node = Node::new("20000-29999");
    let mut dual = facts("a", Some("10.244.0.2"));
    dual.pod_ips.push("fd00:244::2".parse().unwrap());
    node.applied(dual).settle();
    let late = node.now.as_secs() + 1;
    node.up(sandbox("new", "s1", "fd00:244::2", late)).later(2);
    assert!(node.is_true("a"));
}

#[test]
fn damage_makes_the_condition_false_only_if_it_lasts() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state.observed(node.now, BTreeSet::new(), false);
    let mut program = node.state.take_actions();
    node.now += Duration::from_secs(1);
    node.state.tick(node.now);
    assert_eq!(node.state.take_actions(), []);
    node.later(1);
    assert!(!node.is_true("a"), "True without rules");
    assert!(node.message("a").contains("missing"));
    let Some(Action::Program(plan)) = program.pop() else {
        panic!("{program:?}")
    };
    node.state.programmed(node.now, &plan, Ok(()));
    node.settle();
    assert!(node.is_true("a"));
}

#[test]
fn the_condition_is_false_while_a_keeper_does_not_hold_the_port() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    node.state.keeper_listed(node.now, &BTreeSet::new());
    let lost = node.state.take_actions();
    node.later(2);
    assert!(!node.is_true("a"), "True without a hold");
    let [Action::Hold(keys)] = &lost[..] else {
        panic!("{lost:?}")
    };
    let held = keys.iter().map(|key| (*key, Ok(()))).collect();
    node.state.held(node.now, held);
    node.settle();
    assert!(node.is_true("a"));
}

#[test]
fn a_pod_that_a_finalizer_keeps_does_not_name_its_port_for_long() {
    let mut node = Node::new("20000-29999");
    node.applied(facts("a", Some("10.244.0.2"))).settle();
    let mut ended = node.shown("a");
    (ended.deleting, ended.finished) = (true, true);
    node.applied(ended.clone()).settle().later(4);
    assert!(node.leads_to("a").is_empty());
    assert_eq!(node.written.len(), 1, "an ordinary deletion is no write");
    // the kubelet writes its status again
    node.applied(node.shown("a")).settle().later(1);
    let record = node.shown("a").record;
    assert_eq!(record.annotation.as_deref(), Some(""));
    assert_eq!(record.condition.unwrap().reason, "Released");
    assert_eq!(
        node.state.next_deadline(),
        Some(node.now + Duration::from_secs(25)),
        "the rest"
    );
    assert_eq!(node.events(), [EventKind::Mapped, EventKind::Released]);
}

#[test]
fn the_first_result_names_the_address_that_the_status_will_name() {
    for (node_first, expected) in [("fd00::11", "fd00:244::2"), ("10.0.0.11", "10.244.0.2")] {
        let mut node = Node::new("20000-29999");
        let mut other = facts("other", None);
        other.host_ips = vec![node_first.parse().unwrap()];
        other.record.annotation = None;
        node.applied(other).settle();
        let mut pod = facts("a", None);
        pod.host_ips.clear();
        node.applied(pod).settle();
        let mut dual = sandbox("a", "s1", "10.244.0.2", 1);
        dual.ips.push("fd00:244::2".parse().unwrap());
        node.up(dual);
        let first = node.written[0].wanted.annotation.clone().unwrap();
        assert!(
            first.contains(&format!(r#""podIP":"{expected}""#)),
            "{first}"
        );
        // the kubelet names both, in its order
        let mut late = node.shown("a");
        late.host_ips = vec![node_first.parse().unwrap()];
        late.pod_ips = vec![
            "10.244.0.2".parse().unwrap(),
            "fd00:244::2".parse().unwrap(),
        ];
        late.pod_ips
            .sort_by_key(|ip: &IpAddr| ip.to_string() != expected);
        node.applied(late).settle();
        let shown = node.shown("a").record.annotation.unwrap();
        assert_eq!(shown, first, "it was right from the start");
    }
}

#[test]
fn a_version_from_a_backup_counts_although_a_write_replaced_it_before() {
    let mut node = Node::new("20000-29999");
    node.echoes = false;
    node.applied(facts("a", None)).settle();
    let before = node.shown("a");
    node.up(sandbox("a", "s-a", "10.244.0.2", 1));
    assert!(node.is_true("a"));
    // the watch lags behind: the version that was replaced changes nothing
    node.written.clear();
    node.state.pod_applied(node.now, before.clone());
    node.settle();
    assert_eq!(node.written, []);
    // the backup has it, and the list that follows shows it
    node.pods.insert(before.pod.uid.clone(), before.clone());
    node.state.pod_applied(node.now, before);
    node.listed().settle();
    assert!(node.is_true("a"));
    assert_eq!(node.written.len(), 1);
}

#[test]
fn a_pod_of_a_backup_is_not_mapped_at_the_address_of_a_sandbox_that_ended_during_the_list() {
    let mut node = Node::new("20000-29999");
    node.echoes = false;
    node.applied(facts("a", Some("10.244.0.7")));
    let before = node.shown("a");
    assert!(node.settle().is_true("a"));
    // the list of the backup shows it, and its sandbox is replaced and ends before the list is complete
    node.pods.insert(before.pod.uid.clone(), before.clone());
    node.state.pod_applied(node.now, before);
    node.up(sandbox("a", "s1", "10.244.0.6", 1));
    let mut late = node.shown("a");
    late.pod_ips = vec!["10.244.0.6".parse().unwrap()];
    node.down("s1").listed().settle();
    // what the kubelet reported of it comes last
    node.applied(late).settle();
    assert_eq!(node.leads_to("a"), BTreeSet::new());
}

#[test]
fn a_text_that_a_user_wrote_stays_when_the_pod_ends() {
    for text in [r#"[{"containerPort":9040}]"#, "nonsense"] {
        let mut node = Node::new("20000-20009");
        node.applied(facts("a", Some("10.244.0.2"))).settle();
        let mut finished = echoed(&node, facts("a", Some("10.244.0.2")));
        finished.finished = true;
        finished.record.annotation = Some(text.into());
        node.applied(finished).settle();
        let record = node.last();
        let condition = record.condition.as_ref().unwrap();
        assert_eq!(condition.reason, "Released");
        assert_eq!(record.annotation.as_deref(), Some(text));
    }
}
