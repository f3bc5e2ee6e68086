//! What is left of a pod's annotations and condition after an uninstallation.

use super::*;

#[test]
fn an_uninstalled_node_leaves_no_pod_that_claims_host_ports() {
    let mut node = Node::new("20000-20009");
    let asked = r#"[{"containerPort":9040,"protocol":"TCP"}]"#;
    for (ask, left) in [("", ""), (asked, asked)] {
        let mut pod = facts("a", Some("10.244.0.2"));
        pod.record.annotation = Some(ask.into());
        node.applied(pod.clone()).settle();
        let mapped = echoed(&node, pod);
        let released = crate::uninstalled(&mapped).unwrap();
        assert_eq!(released.version, mapped.version);
        let record = released.wanted;
        assert_eq!(
            record.annotation.as_deref(),
            Some(left),
            "the request stays"
        );
        assert_eq!(record.mark, None);
        let condition = record.condition.clone().unwrap();
        assert_eq!((condition.status, &*condition.reason), (false, "Released"));
        let again = PodFacts { record, ..mapped };
        assert_eq!(crate::uninstalled(&again), None, "written once");
    }
    let untouched = facts("b", Some("10.244.0.3"));
    assert_eq!(
        crate::uninstalled(&untouched),
        None,
        "nothing of ours is there"
    );
}
