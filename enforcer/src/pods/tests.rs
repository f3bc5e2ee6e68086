use portmapping_shared::contract::ENFORCER_MANAGER;
use serde_json::json;

use super::*;

fn pod(changes: &serde_json::Value) -> SlimPod {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "a", "namespace": "ns", "uid": "uid-a" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "ports": [{ "containerPort": 80 }] }] },
    });
    merge(&mut pod, changes);
    serde_json::from_value(pod).unwrap()
}

fn merge(into: &mut serde_json::Value, from: &serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(
                    into.entry(key.clone()).or_insert(serde_json::Value::Null),
                    value,
                );
            }
        }
        (into, from) => *into = from.clone(),
    }
}

#[test]
fn a_pod_before_its_sandbox_has_no_address() {
    let facts = facts(&pod(&json!({}))).unwrap();
    assert!(facts.pod_ips.is_empty() && facts.host_ips.is_empty() && !facts.finished);
    assert_eq!(facts.record, Record::default());
}

#[test]
fn only_ports_that_can_count_are_kept() {
    let numbers = |changes: &serde_json::Value| -> Vec<i64> {
        let facts = facts(&pod(changes)).unwrap();
        let ports = facts.spec.containers.iter().flat_map(|it| &it.ports);
        ports.map(|port| port.container_port).collect()
    };
    let asks = json!({ "annotations": { ANNOTATION: "" } });
    let static_too = json!([{ "containerPort": 80 }, { "containerPort": 81, "hostPort": 8081 }]);
    let two = json!({ "containers": [{ "name": "c", "ports": static_too }] });
    assert_eq!(numbers(&json!({ "spec": two })), [81]);
    assert_eq!(numbers(&json!({ "spec": two, "metadata": asks })), [80, 81]);
    let ended = json!({ "spec": two, "metadata": asks, "status": { "phase": "Failed" } });
    assert!(numbers(&ended).is_empty());
    let many = |name: &str| {
        let ports: Vec<_> = (1..=3000)
            .map(|it| json!({ "containerPort": it }))
            .collect();
        json!({ "name": name, "ports": ports })
    };
    let many = json!({ "containers": [many("a"), many("b")] });
    let kept = numbers(&json!({ "spec": many, "metadata": asks }));
    assert_eq!(kept.len(), 4096);
}

#[test]
fn only_the_own_readiness_gate_is_kept() {
    let gates = json!([{ "conditionType": "a" }, { "conditionType": CONDITION }, { "conditionType": CONDITION }]);
    let found = facts(&pod(&json!({ "spec": { "readinessGates": gates } }))).unwrap();
    assert!(found.spec.has_gate(CONDITION));
    assert_eq!(found.spec.readiness_gates.len(), 1);
}

#[test]
fn every_field_of_a_mapped_dual_stack_pod_is_read() {
    let facts = facts(&pod(&json!({
        "metadata": { "annotations": { ANNOTATION: "[]", REQUEST_MARK: "[1]", "other": "x" } },
        "status": {
            "podIP": "10.244.0.2",
            "podIPs": [{ "ip": "10.244.0.2" }, { "ip": "fd00:244::2" }],
            "hostIP": "10.0.0.11",
            "conditions": [
                { "type": "Ready", "status": "True" },
                { "type": CONDITION, "status": "True", "reason": "Mapped", "message": "m" },
            ],
        },
    })))
    .unwrap();
    assert_eq!(facts.pod_ips.len(), 2);
    assert_eq!(facts.host_ips, ["10.0.0.11".parse::<IpAddr>().unwrap()]);
    assert_eq!(facts.record.annotation.as_deref(), Some("[]"));
    assert_eq!(facts.record.mark.as_deref(), Some("[1]"));
    let condition = facts.record.condition.unwrap();
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (true, "Mapped")
    );
}

#[test]
fn a_pod_is_finished_by_its_phase_or_when_deleted_with_all_containers_ended() {
    let ended = json!([{ "name": "c", "state": { "terminated": { "exitCode": 0 } } }]);
    let running = json!([{ "name": "c", "state": { "running": {} } }]);
    let deleted = json!({ "deletionTimestamp": "2026-11-20T00:00:00Z" });
    let cases = [
        (
            json!({}),
            json!({ "phase": "Running", "containerStatuses": running }),
            false,
        ),
        (json!({}), json!({ "phase": "Succeeded" }), true),
        (json!({}), json!({ "phase": "Failed" }), true),
        // a container that was restarted will run again
        (
            json!({}),
            json!({ "phase": "Running", "containerStatuses": ended }),
            false,
        ),
        (
            deleted.clone(),
            json!({ "phase": "Running", "containerStatuses": running }),
            false,
        ),
        (
            deleted.clone(),
            json!({ "phase": "Running", "containerStatuses": ended }),
            true,
        ),
        (deleted, json!({ "phase": "Pending" }), false),
    ];
    for (metadata, status, finished) in cases {
        let facts = facts(&pod(&json!({ "metadata": metadata, "status": status }))).unwrap();
        assert_eq!(facts.finished, finished, "{metadata} {status}");
    }
}

#[test]
fn a_deleted_pod_is_not_finished_while_a_sidecar_drains() {
    let ended = json!({ "name": "c", "state": { "terminated": { "exitCode": 0 } } });
    let running = json!({ "name": "s", "state": { "running": { "startedAt": null } } });
    let waiting = json!({ "name": "s", "state": { "waiting": {} } });
    let deleted = json!({ "deletionTimestamp": "2026-11-20T00:00:00Z" });
    for (kind, other, finished) in [
        ("initContainerStatuses", &running, false),
        ("ephemeralContainerStatuses", &running, false),
        // an init container that has ended, or will not start any more
        ("initContainerStatuses", &ended, true),
        ("initContainerStatuses", &waiting, true),
    ] {
        let mut status = json!({ "phase": "Running", "containerStatuses": [ended] });
        status[kind] = json!([other]);
        let facts = facts(&pod(&json!({ "metadata": deleted, "status": status }))).unwrap();
        assert_eq!(facts.finished, finished, "{kind} {other}");
    }
}

#[test]
fn the_runtime_knows_a_static_pod_by_its_hash() {
    let (hash, uid) = (
        "0123456789abcdef0123456789abcdef",
        "e9b1a6b2-5d1f-4f3c-9d1a-000000000000",
    );
    let runtime_uid = |hash: &str, mirror: &str| {
        let annotations = json!({ CONFIG_HASH: hash, CONFIG_MIRROR: mirror });
        let pod = pod(&json!({ "metadata": { "annotations": annotations } }));
        let uid = facts(&pod).unwrap().runtime_uid;
        uid.map(|uid| uid.to_string())
    };
    assert_eq!(runtime_uid(hash, hash).as_deref(), Some(hash));
    // no mirror pod; and the uid of another pod
    assert_eq!(runtime_uid(hash, ""), None);
    assert_eq!(runtime_uid(uid, uid), None);
    assert_eq!(facts(&pod(&json!({}))).unwrap().runtime_uid, None);
}

#[test]
fn a_pod_with_an_unusable_uid_is_ignored() {
    assert!(facts(&pod(&json!({ "metadata": { "uid": "a b" } }))).is_none());
    assert!(facts(&pod(&json!({ "metadata": { "uid": null } }))).is_none());
}

#[test]
fn a_list_is_sent_pod_by_pod_and_then_as_a_whole() {
    let other = pod(&json!({ "metadata": { "name": "b", "uid": "uid-b" } }));
    let events = [
        Event::ListStarted,
        Event::Listed(pod(&json!({}))),
        Event::ListStarted,
        Event::Listed(other.clone()),
        Event::ListComplete,
        Event::Deleted(other),
    ];
    let mut list = List::default();
    let told = events
        .into_iter()
        .filter_map(|event| list.update(event))
        .map(|update| match update {
            PodUpdate::Applied(facts) => facts.pod.uid.to_string(),
            PodUpdate::Gone(uid) => format!("gone {uid}"),
            PodUpdate::Relisted(uids) => format!("all {}", uids.len()),
        });
    let told: Vec<_> = told.collect();
    // an incomplete list does not show which pods were deleted
    assert_eq!(told, ["uid-a", "uid-b", "all 1", "gone uid-b"]);
}

#[test]
fn the_manager_that_wrote_the_annotation_last_is_known() {
    let entry = |manager: &str, minute: u8, key: &str| {
        json!({
            "manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "time": format!("2026-11-20T00:{minute:02}:00Z"),
            "fieldsV1": { "f:metadata": { "f:annotations": { format!("f:{key}"): {} } } },
        })
    };
    let managers = |entries: serde_json::Value| {
        let pod = pod(&json!({ "metadata": { "managedFields": entries } }));
        facts(&pod).unwrap().annotation_manager
    };
    assert_eq!(managers(json!([])), None);
    let found = managers(json!([
        entry("kubectl", 1, ANNOTATION),
        entry("gitops", 2, ANNOTATION),
        entry("other", 3, REQUEST_MARK),
        entry(ENFORCER_MANAGER, 4, ANNOTATION),
    ]));
    assert_eq!(found.as_deref(), Some("gitops"));
}

#[test]
fn a_pod_has_started_once_its_sandbox_is_ready_or_a_container_ran() {
    let started = |status| facts(&pod(&json!({ "status": status }))).unwrap().started;
    let ready = |status| json!({ "conditions": [{ "type": "PodReadyToStartContainers", "status": status }] });
    let container = |state: &str| json!({ "containerStatuses": [{ "state": { state: {} } }] });
    assert!(!started(json!({ "podIP": "10.0.0.11" })));
    assert!(!started(ready("False")) && started(ready("True")));
    assert!(!started(container("waiting")));
    assert!(started(container("running")) && started(container("terminated")));
}

#[test]
fn of_an_ended_pod_without_a_result_the_annotation_is_not_kept() {
    let annotation = |phase: &str, mark: Option<&str>| {
        let mut annotations = json!({ ANNOTATION: " ".repeat(16_384) });
        if let Some(mark) = mark {
            annotations[REQUEST_MARK] = json!(mark);
        }
        let pod =
            json!({ "metadata": { "annotations": annotations }, "status": { "phase": phase } });
        facts(&self::pod(&pod)).unwrap().record.annotation
    };
    assert_eq!(annotation("Failed", None), None);
    assert!(annotation("Failed", Some("[]")).is_some());
    assert!(annotation("Running", None).is_some());
}

/// The API server takes any year of four digits; a user may write the times of managedFields.
#[test]
fn a_pod_with_absurd_times_is_read() {
    let late = "9999-12-31T23:59:59Z";
    let fields = json!({ "f:metadata": { "f:annotations": { format!("f:{ANNOTATION}"): {} } } });
    let entry = json!({ "manager": "kubectl", "time": late, "fieldsV1": fields });
    let facts = facts(&pod(&json!({
        "metadata": { "managedFields": [entry], "creationTimestamp": late, "deletionTimestamp": late },
    })))
    .unwrap();
    assert!(facts.deleting);
    assert_eq!(facts.annotation_manager.as_deref(), Some("kubectl"));
}
