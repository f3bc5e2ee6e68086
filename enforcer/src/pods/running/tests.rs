use serde_json::{Value, json};

use super::*;

fn pod(metadata: &Value, phase: &str, state: &Value) -> SlimPod {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {},
        "status": {
            "phase": phase,
            "podIP": "10.244.0.2",
            "podIPs": [{ "ip": "10.244.0.2" }, { "ip": "fd00:244::2" }],
            "containerStatuses": [{ "name": "c", "state": state }],
        },
    }))
    .unwrap()
}

#[test]
fn only_a_pod_that_runs_and_is_not_being_deleted_has_its_addresses() {
    let (alive, running) = (json!({ "name": "a" }), json!({ "running": {} }));
    let deleting = json!({ "name": "a", "deletionTimestamp": "2026-11-20T00:00:00Z" });
    let ended = json!({ "terminated": { "exitCode": 0 } });
    let both: Vec<IpAddr> = ["10.244.0.2", "fd00:244::2"]
        .map(|ip| ip.parse().unwrap())
        .into();
    assert_eq!(running_addresses(&pod(&alive, "Running", &running)), both);
    for other in [
        pod(&deleting, "Running", &running),
        pod(&alive, "Running", &ended),
        pod(&alive, "Failed", &running),
        pod(&alive, "Pending", &json!({ "waiting": {} })),
    ] {
        assert_eq!(running_addresses(&other), [] as [IpAddr; 0], "{other:?}");
    }
}
