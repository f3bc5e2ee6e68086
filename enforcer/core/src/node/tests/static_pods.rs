//! Static pods: the runtime's result names the hash of their configuration.

use super::*;

/// A pod that the runtime knows under `runtime`.
fn mirror(name: &str, runtime: &str) -> PodFacts {
    PodFacts {
        runtime_uid: Some(format!("uid-{runtime}").parse().unwrap()),
        ..facts(name, None)
    }
}

#[test]
fn a_static_pod_is_mapped_by_the_result_that_names_its_hash() {
    for sandbox_first in [true, false] {
        let mut node = Node::new("20000-29999");
        let up = sandbox("hash", "s1", "10.244.0.2", 2000);
        if sandbox_first {
            node.up(up.clone());
        }
        node.applied(mirror("static", "hash")).settle();
        if !sandbox_first {
            node.up(up);
        }
        assert_eq!(node.leads_to("static"), ["10.244.0.2".to_owned()].into());
        assert!(node.is_true("static"));
        // the mirror pod is deleted; the kubelet creates another one for the same sandbox
        let ports = node.host_ports("static");
        node.gone("static");
        let mut again = mirror("static", "hash");
        again.pod.uid = "uid-again".parse().unwrap();
        node.applied(again).settle();
        assert_eq!(node.leads_to("again"), ["10.244.0.2".to_owned()].into());
        assert_eq!(node.host_ports("again"), ports);
        node.down("s1");
        assert!(node.leads_to("again").is_empty());
    }
}

#[test]
fn a_second_pod_with_a_static_pods_hash_gets_nothing_of_it() {
    let mut node = Node::new("20000-29999");
    node.applied(mirror("static", "hash")).settle();
    node.applied(mirror("fake", "hash")).settle();
    node.up(sandbox("hash", "s1", "10.244.0.2", 2000));
    assert_eq!(node.leads_to("static").len(), 1);
    assert!(node.leads_to("fake").is_empty());
    node.gone("fake");
    assert_eq!(node.leads_to("static").len(), 1);
}
