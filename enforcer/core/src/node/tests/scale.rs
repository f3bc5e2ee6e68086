//! What an event costs on a full node, as the number of pods that are processed.

use super::*;

const PODS: usize = 5_000;

fn address(n: usize) -> String {
    format!("10.{}.{}.{}", 100 + n / 60_000, n / 250 % 240, n % 250 + 1)
}

#[test]
fn an_event_processes_only_its_own_pod() {
    let mut node = Node::new("10000-60000");
    node.settle();
    for n in 0..PODS {
        node.applied(facts(&format!("p{n}"), Some(&address(n))));
    }
    while let actions @ [_, ..] = node.state.take_actions().as_slice() {
        for action in actions {
            match action {
                Action::Hold(keys) => {
                    let held = keys.iter().map(|key| (*key, Ok(()))).collect();
                    node.state.held(NOW, held);
                }
                Action::Program(plan) => node.state.programmed(NOW, plan, Ok(())),
                Action::Publish(publication) => {
                    node.publish(publication.clone());
                }
                Action::Release(keys) => node.state.released(NOW, keys),
                Action::Event(_) | Action::ReadPod { .. } => {}
            }
        }
    }
    assert_eq!(node.state.counts().mappings, 2 * PODS);
    assert_eq!(node.state.audit(), Ok(()));
    let before = node.state.agenda.processed;
    node.applied(facts("fresh", Some("10.1.1.1"))).settle();
    node.applied(facts("p17", Some("10.1.1.2"))).settle();
    node.up(sandbox("p18", "s18", "10.1.1.3", 1)).down("s18");
    node.gone("p19");
    // these pods and the answers for them, and no other pod
    let processed = node.state.agenda.processed - before;
    assert!(processed < 60, "{processed} pods were processed");
    assert_eq!(node.state.audit(), Ok(()));
}

#[test]
fn a_read_of_the_rules_processes_no_pod_that_has_ended() {
    let mut node = Node::new("20000-29999");
    for n in 0..500 {
        let ended = PodFacts {
            finished: true,
            ..facts(&format!("p{n}"), Some(&address(n)))
        };
        node.applied(ended);
    }
    node.applied(facts("lives", Some("10.1.1.1"))).settle();
    let before = node.state.agenda.processed;
    let rules = node.state.desired();
    assert!(node.state.observed(node.now, rules, true));
    node.settle();
    let processed = node.state.agenda.processed - before;
    assert!(
        (1..5).contains(&processed),
        "{processed} pods were processed"
    );
}
