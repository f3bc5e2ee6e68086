use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Answer, Malformed, Subject, encode, parse};
use crate::mutate::{Verdict, judge};

/// A review as the API server writes it, with fields that this program does not read.
fn review() -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800003",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "games",
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": {
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": {
                    "generateName": "game-",
                    "creationTimestamp": null,
                    "annotations": { "tkestack.io/portmapping": "" },
                    "managedFields": [{ "fieldsV1": { "f:metadata": { "f:labels": {} } } }],
                },
                "spec": { "containers": [{ "name": "a", "ports": [{ "containerPort": 7777 }] }] },
                "status": {},
            },
            "oldObject": null,
            "dryRun": true,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

fn changed(pointer: &str, value: Value) -> Value {
    let mut review = review();
    *review.pointer_mut(pointer).unwrap() = value;
    review
}

fn read(review: &Value) -> Result<super::Review, Malformed> {
    parse(review.to_string().as_bytes())
}

fn response_to(uid: &str, answer: &Answer<'_>) -> Value {
    serde_json::from_slice(&encode(uid, answer).unwrap()).unwrap()
}

#[test]
fn reads_what_the_api_server_writes() {
    let read = read(&review()).unwrap();
    assert_eq!(read.uid, "705ab4f5-6393-11e8-b7cc-42010a800003");
    assert_eq!((read.namespace.as_str(), read.dry_run), ("games", true));
    let Subject::Pod(pod) = read.subject else {
        panic!("{:?}", read.subject)
    };
    assert_eq!(pod.metadata.generate_name, "game-");
    assert_eq!(pod.metadata.annotations.request.as_deref(), Some(""));
}

#[test]
fn reviews_of_other_objects_and_operations_are_admitted_unread() {
    for (pointer, value) in [
        ("/request/operation", json!("UPDATE")),
        ("/request/operation", json!("CONNECT")),
        ("/request/resource/resource", json!("deployments")),
        ("/request/resource/group", json!("example.com")),
        ("/request/resource/version", json!("v2")),
    ] {
        let mut review = changed(pointer, value);
        assert_eq!(read(&review).unwrap().subject, Subject::Other, "{pointer}");
        review["request"]["object"] = json!({ "metadata": { "annotations": [7] } });
        assert_eq!(
            read(&review).unwrap().subject,
            Subject::Other,
            "{pointer}, odd object"
        );
    }
    let mut binding = review();
    binding["request"]["subResource"] = json!("binding");
    assert_eq!(read(&binding).unwrap().subject, Subject::Other);
}

#[test]
fn a_pod_that_cannot_be_read_is_denied_under_its_uid() {
    for object in [
        Value::Null,
        json!("pod"),
        json!({ "spec": { "containers": 7 } }),
        json!({ "metadata": { "annotations": { "tkestack.io/portmapping": ["long".repeat(200)] } } }),
        json!({ "spec": { "hostNetwork": "x".repeat(5_000) } }),
    ] {
        let read = read(&changed("/request/object", object.clone())).unwrap();
        let Subject::Unreadable(reason) = &read.subject else {
            panic!("{object}")
        };
        assert!(reason.chars().count() <= 203, "{reason}");
        let answer = response_to(&read.uid, &Answer::Unreadable(reason));
        assert_eq!(answer["response"]["uid"], read.uid.as_str());
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["code"], 400);
    }
}

#[test]
fn each_malformed_body_has_its_own_error() {
    for body in [
        &b""[..],
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"{}x",
        b"{\"request\":7}",
    ] {
        assert!(matches!(parse(body), Err(Malformed::Syntax(_))), "{body:?}");
    }
    for (pointer, value) in [
        ("/apiVersion", json!("admission.k8s.io/v1beta1")),
        ("/kind", json!("ConversionReview")),
        ("/kind", Value::Null),
    ] {
        assert!(
            matches!(read(&changed(pointer, value)), Err(Malformed::Kind(_))),
            "{pointer}"
        );
    }
    for body in [&b"{}"[..], b"[]"] {
        assert!(matches!(parse(body), Err(Malformed::Kind(_))));
    }
    assert_eq!(
        read(&changed("/request", Value::Null)),
        Err(Malformed::NoRequest)
    );
    assert_eq!(
        read(&changed("/request/uid", json!(""))),
        Err(Malformed::Uid)
    );
    assert_eq!(
        read(&changed("/request/uid", json!("x".repeat(201)))),
        Err(Malformed::Uid)
    );
}

#[test]
fn deep_nesting_and_long_values_are_survived() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body = review()
        .to_string()
        .replace("\"status\":{}", &format!("\"status\":{deep}"));
    let _ = parse(body.as_bytes());
    let error = read(&changed("/kind", json!("\n".repeat(9_000))))
        .unwrap_err()
        .to_string();
    assert!(error.len() < 400 && !error.contains('\n'), "{error}");
}

#[test]
fn a_pod_with_a_duplicate_field_is_unreadable() {
    let body = review().to_string();
    let twice = body.replace("\"spec\":{", "\"spec\":{},\"spec\":{");
    assert!(matches!(
        parse(twice.as_bytes()).unwrap().subject,
        Subject::Unreadable(_)
    ));
}

#[test]
fn an_admitted_pod_gets_a_base64_patch() {
    let Subject::Pod(pod) = read(&review()).unwrap().subject else {
        panic!("no pod")
    };
    let answer = response_to("u", &Answer::Verdict(&judge(&pod, 64)));
    let response = &answer["response"];
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(
        (&response["uid"], &response["allowed"]),
        (&json!("u"), &json!(true))
    );
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(
        response["status"],
        json!({ "code": 200, "reason": "PortsRequested" })
    );
    let patch = STANDARD
        .decode(response["patch"].as_str().unwrap())
        .unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    let expected = json!([
        {
            "op": "add",
            "path": "/metadata/annotations/tkestack.io~1portmapping-request",
            "value": r#"[{"containerPort":7777,"protocol":"TCP"}]"#,
        },
        {
            "op": "add",
            "path": "/spec/readinessGates",
            "value": [{ "conditionType": "tkestack.io/portmapping" }],
        },
    ]);
    assert_eq!(patch, expected);
}

#[test]
fn a_response_without_changes_has_no_patch() {
    let answer = response_to("u", &Answer::Verdict(&Verdict::unchanged()));
    let expected = json!({
        "uid": "u",
        "allowed": true,
        "status": { "code": 200, "reason": "NotAsked" },
    });
    assert_eq!(answer["response"], expected);
}

#[test]
fn warnings_and_denials_are_in_the_response() {
    let mut review = review();
    review["request"]["object"]["spec"] = json!({});
    let Subject::Pod(pod) = read(&review).unwrap().subject else {
        panic!("no pod")
    };
    let answer = response_to("u", &Answer::Verdict(&judge(&pod, 64)));
    assert_eq!(answer["response"]["warnings"].as_array().unwrap().len(), 1);

    review["request"]["object"]["metadata"]["annotations"]["tkestack.io/portmapping"] = json!("x");
    let Subject::Pod(pod) = read(&review).unwrap().subject else {
        panic!("no pod")
    };
    let answer = response_to("u", &Answer::Verdict(&judge(&pod, 64)));
    assert_eq!(answer["response"]["allowed"], false);
    let status = &answer["response"]["status"];
    assert_eq!(
        (&status["code"], &status["reason"]),
        (&json!(400), &json!("BadRequest"))
    );
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("is not a port request")
    );
    assert_eq!(answer["response"]["patch"], Value::Null);
}
