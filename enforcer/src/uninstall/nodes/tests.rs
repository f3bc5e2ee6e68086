use serde_json::{Value, json};

use super::*;

fn set(wanted: i32) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": { "name": "uninstall", "namespace": "there", "generation": 2, "uid": "now" },
        "spec": { "selector": { "matchLabels": { "a": "b", "c": "d" } }, "template": {} },
        "status": {
            "observedGeneration": 2, "desiredNumberScheduled": wanted,
            "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        },
    }))
    .unwrap()
}

fn node(name: &str, ready: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "status": { "conditions": [{ "type": "Ready", "status": ready }] },
    }))
    .unwrap()
}

fn pod(node: &str, ready: &str, state: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("pod-of-{node}"),
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "uninstall", "uid": "now" }],
        },
        "spec": { "nodeName": node, "containers": [] },
        "status": {
            "conditions": [{ "type": "Ready", "status": ready }],
            "containerStatuses": [{
                "name": "uninstall", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }],
        },
    }))
    .unwrap()
}

#[test]
fn every_node_that_is_not_clean_is_named_with_the_reason() {
    let nodes = [node("a", "True"), node("b", "True"), node("c", "Unknown")];
    let refused = json!({ "terminated": { "exitCode": 1, "message": "a keeper still answers\n" } });
    let pods = [
        pod("a", "True", &json!({ "running": {} })),
        pod("b", "False", &refused),
        pod("c", "False", &json!({ "running": {} })),
    ];
    let (pods, nodes) = (pods.map(slim_pod), nodes.map(slim_node));
    let progress = Progress::of(&set(3), &pods, &nodes);
    assert_eq!(progress.clean, 1);
    assert_eq!(progress.pending, ["b: a keeper still answers"]);
    assert_eq!(progress.unreachable, ["c"]);
    let text = progress.outcome().unwrap_err().to_string();
    assert!(
        text.contains("b: a keeper") && text.contains("c: the node is not Ready"),
        "{text}"
    );
}

#[test]
fn nodes_whose_pods_do_not_exist_yet_are_not_clean() {
    let nodes = [node("a", "True")];
    let pods = [pod("a", "True", &json!({ "running": {} }))];
    let all = Progress::of(&set(1), &pods, &nodes);
    assert!(all.pending.is_empty() && all.outcome().is_ok());
    let missing = Progress::of(&set(2), &pods, &nodes);
    assert!(missing.pending[0].contains("1 pods"), "{missing:?}");
    let mut unseen = set(0);
    unseen.metadata.generation = Some(3);
    let unseen = Progress::of(&unseen, &[], &nodes);
    assert!(
        !unseen.pending.is_empty(),
        "its status is older than its spec"
    );
}

#[test]
fn a_node_without_room_is_named_and_one_that_is_down_is_not_awaited() {
    let nodes = [node("a", "True"), node("b", "Unknown")];
    let pods = nodes.clone().map(|node| {
        let mut pod = pod("", "False", &json!({}));
        let name =
            json!([{ "key": "metadata.name", "operator": "In", "values": [node.name_any()] }]);
        let terms = json!({ "nodeSelectorTerms": [{ "matchFields": name }] });
        let required = json!({ "requiredDuringSchedulingIgnoredDuringExecution": terms });
        let affinity = json!({ "nodeAffinity": required });
        pod.spec =
            serde_json::from_value(json!({ "containers": [], "affinity": affinity })).unwrap();
        let full = json!({ "type": "PodScheduled", "status": "False", "message": "Too many pods" });
        pod.status = serde_json::from_value(json!({ "conditions": [full] })).unwrap();
        slim_pod(pod)
    });
    let progress = Progress::of(&set(2), &pods, &nodes);
    assert_eq!(
        progress.pending,
        ["a: its pod has not started: Too many pods"]
    );
    assert_eq!(progress.unreachable, ["b"]);
}

#[test]
fn pods_of_an_interrupted_run_say_nothing_of_a_node() {
    let mut earlier = pod("a", "True", &json!({ "running": {} }));
    earlier.metadata.owner_references.as_mut().unwrap()[0].uid = "before".to_owned();
    let progress = Progress::of(&set(1), &[slim_pod(earlier)], &[node("a", "True")]);
    assert_eq!(progress.clean, 0);
    assert!(progress.pending[0].contains("1 pods"), "{progress:?}");
}

#[test]
fn pods_are_found_by_the_labels_of_the_set() {
    assert_eq!(selector(&set(1)), "a=b,c=d");
}
