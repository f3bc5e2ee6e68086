use portmapping_enforcer_core::{Condition, Record};
use portmapping_shared::PodRef;

use super::*;

fn publication(current: Record, wanted: Record) -> Publication {
    let pod = PodRef {
        namespace: "ns".into(),
        name: "a".into(),
        uid: "uid-a".parse().unwrap(),
    };
    Publication {
        pod,
        version: "7".to_owned(),
        current,
        wanted,
    }
}

fn record(status: bool) -> Record {
    Record {
        annotation: Some("[]".into()),
        mark: Some("[1]".into()),
        condition: Some(Condition {
            status,
            reason: "R".into(),
            message: "m".into(),
        }),
    }
}

fn now() -> Timestamp {
    "2026-11-20T01:02:03.456Z".parse().unwrap()
}

#[test]
fn annotation_mark_and_condition_go_in_one_patch_bound_to_uid_and_version() {
    let body = patch(&publication(Record::default(), record(true)), now());
    assert_eq!(
        body,
        json!({
            "metadata": {
                "uid": "uid-a",
                "resourceVersion": "7",
                "annotations": { ANNOTATION: "[]", REQUEST_MARK: "[1]" },
            },
            "status": { "conditions": [{
                "type": CONDITION, "status": "True", "reason": "R", "message": "m",
                "lastTransitionTime": "2026-11-20T01:02:03Z",
            }] },
        })
    );
}

#[test]
fn transition_time_changes_only_with_the_status() {
    let body = patch(&publication(record(true), record(true)), now());
    assert!(
        body["status"]["conditions"][0]
            .get("lastTransitionTime")
            .is_none(),
        "{body}"
    );
    let body = patch(&publication(record(true), record(false)), now());
    assert_eq!(
        body["status"]["conditions"][0]["lastTransitionTime"],
        "2026-11-20T01:02:03Z"
    );
}

#[test]
fn unwanted_annotations_and_conditions_are_removed() {
    let body = patch(&publication(record(true), Record::default()), now());
    assert!(body["metadata"]["annotations"][ANNOTATION].is_null());
    assert!(
        body["metadata"]["annotations"]
            .as_object()
            .unwrap()
            .contains_key(REQUEST_MARK)
    );
    assert_eq!(
        body["status"]["conditions"][0],
        json!({ "type": CONDITION, "$patch": "delete" })
    );
}

#[test]
fn unchanged_annotations_are_not_in_the_patch() {
    let body = patch(&publication(record(true), record(false)), now());
    assert_eq!(body["metadata"]["annotations"], json!({}));
    assert_eq!(body["status"]["conditions"][0]["status"], "False");
}
