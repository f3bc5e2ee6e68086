//! Every kind of annotation value: pod JSON in, patched pod JSON out.

use portmapping_shared::contract::DEFAULT_MAX_PORTS;
use serde_json::{Value, json};

use super::{CHOSEN_HOST_PORT, COPIED_RESULT, NO_PORTS, Reason, Verdict, WINDOWS, judge};
use crate::pod::Pod;

const RESULT: &str = r#"[{"hostPort":23817,"containerPort":9040,"protocol":"TCP","podName":"hello-0","podIP":"10.244.1.7"}]"#;

fn pod(annotations: &Value, spec: &Value) -> Value {
    json!({ "metadata": { "name": "hello", "annotations": annotations }, "spec": spec })
}

fn one_port() -> Value {
    json!({ "containers": [{ "ports": [{ "containerPort": 9040 }] }] })
}

fn verdict(pod: &Value) -> Verdict {
    judge(
        &serde_json::from_value::<Pod>(pod.clone()).unwrap(),
        DEFAULT_MAX_PORTS,
    )
}

/// The pod as it is stored, with reason and warnings.
fn admitted(mut pod: Value) -> (Value, Reason, Vec<String>) {
    let Verdict::Allow {
        reason,
        patch,
        warnings,
    } = verdict(&pod)
    else {
        panic!("denied")
    };
    json_patch::patch(&mut pod, &patch).unwrap();
    let Verdict::Allow { patch: again, .. } = verdict(&pod) else {
        panic!("denied by the second pass")
    };
    assert_eq!(again, [], "a second pass changes nothing");
    (pod, reason, warnings)
}

fn denied(annotation: &str, spec: &Value) -> String {
    match verdict(&pod(
        &json!({ "tkestack.io/portmapping": annotation }),
        spec,
    )) {
        Verdict::Deny(invalid) => invalid.to_string(),
        allowed @ Verdict::Allow { .. } => panic!("{annotation}: {allowed:?}"),
    }
}

fn gate() -> Value {
    json!({ "conditionType": "tkestack.io/portmapping" })
}

#[test]
fn a_pod_without_the_annotation_is_unchanged() {
    let marks = json!({ "tkestack.io/portmapping-request": "x", "host-port.tkestack.io/1": "2" });
    for (annotations, spec) in [
        (Value::Null, one_port()),
        (json!({}), one_port()),
        (json!({ "a": "b" }), json!({})),
        (marks, one_port()),
    ] {
        assert_eq!(verdict(&pod(&annotations, &spec)), Verdict::unchanged());
    }
    assert_eq!(verdict(&json!({})), Verdict::unchanged());
}

#[test]
fn a_pod_that_asks_gets_request_mark_and_readiness_gate() {
    let asking = pod(&json!({ "tkestack.io/portmapping": "" }), &one_port());
    let (stored, reason, warnings) = admitted(asking.clone());
    let mut expected = asking;
    expected["metadata"]["annotations"]["tkestack.io/portmapping-request"] =
        json!(r#"[{"containerPort":9040,"protocol":"TCP"}]"#);
    expected["spec"]["readinessGates"] = json!([gate()]);
    assert_eq!(stored, expected);
    assert_eq!((reason, warnings), (Reason::PortsRequested, Vec::new()));
}

#[test]
fn the_users_request_stays_in_the_annotation() {
    let spec = json!({ "containers": [
        { "ports": [{ "name": "web", "containerPort": 9040 }, { "containerPort": 1 }] },
    ] });
    let asked =
        r#"[{"containerPort":"web"},{"containerPort":53,"protocol":"UDP","hostIP":"10.0.0.11"}]"#;
    let (stored, ..) = admitted(pod(&json!({ "tkestack.io/portmapping": asked }), &spec));
    let annotations = &stored["metadata"]["annotations"];
    assert_eq!(annotations["tkestack.io/portmapping"], asked);
    assert_eq!(
        annotations["tkestack.io/portmapping-request"],
        r#"[{"containerPort":9040,"protocol":"TCP","name":"web"},{"containerPort":53,"protocol":"UDP","hostIP":"10.0.0.11"}]"#
    );
}

#[test]
fn other_readiness_gates_stay_and_ours_is_added_once() {
    let other = json!({ "conditionType": "example.com/other" });
    for (there, expected) in [
        (Value::Null, json!([gate()])),
        (json!([]), json!([gate()])),
        (json!([other]), json!([other, gate()])),
        (json!([gate(), other]), json!([gate(), other])),
    ] {
        let mut spec = one_port();
        spec["readinessGates"] = there;
        let (stored, ..) = admitted(pod(&json!({ "tkestack.io/portmapping": " \n" }), &spec));
        assert_eq!(stored["spec"]["readinessGates"], expected);
    }
}

#[test]
fn a_request_mark_written_by_a_user_is_replaced() {
    let annotations = json!({
        "tkestack.io/portmapping": "",
        "tkestack.io/portmapping-request": r#"[{"containerPort":22,"protocol":"TCP"}]"#,
    });
    let (stored, ..) = admitted(pod(&annotations, &one_port()));
    let mark = &stored["metadata"]["annotations"]["tkestack.io/portmapping-request"];
    assert_eq!(mark, r#"[{"containerPort":9040,"protocol":"TCP"}]"#);
}

#[test]
fn a_copied_result_is_reset_and_its_per_port_annotations_are_removed() {
    let annotations = json!({
        "a/b~c": "d",
        "tkestack.io/portmapping": RESULT,
        "host-port.tkestack.io/9040-tcp": "23817",
        "host-port.tkestack.io/~1/": "",
    });
    let (stored, reason, warnings) = admitted(pod(&annotations, &one_port()));
    let expected = json!({
        "a/b~c": "d",
        "tkestack.io/portmapping": "",
        "tkestack.io/portmapping-request": r#"[{"containerPort":9040,"protocol":"TCP"}]"#,
    });
    assert_eq!(stored["metadata"]["annotations"], expected);
    assert_eq!(reason, Reason::ResultReset);
    assert_eq!(warnings, [COPIED_RESULT]);
}

#[test]
fn a_chosen_host_port_is_reset_with_a_warning_that_names_the_field_for_it() {
    let value = r#"[{"containerPort":9040,"hostPort":7001}]"#;
    let asking = pod(&json!({ "tkestack.io/portmapping": value }), &one_port());
    let (stored, reason, warnings) = admitted(asking);
    assert_eq!(
        stored["metadata"]["annotations"]["tkestack.io/portmapping"],
        ""
    );
    assert_eq!(reason, Reason::ResultReset);
    assert_eq!(warnings, [CHOSEN_HOST_PORT]);
    assert!(CHOSEN_HOST_PORT.contains("ports[].hostPort"));
}

#[test]
fn a_windows_pod_is_admitted_unchanged_with_a_warning() {
    let mut by_os = one_port();
    by_os["os"] = json!({ "name": "windows" });
    let mut by_selector = one_port();
    by_selector["nodeSelector"] = json!({ "a": "b", "kubernetes.io/os": "windows" });
    for spec in [by_os, by_selector] {
        for value in ["", r#"[{"containerPort":9040}]"#] {
            let asking = pod(&json!({ "tkestack.io/portmapping": value }), &spec);
            let (stored, reason, warnings) = admitted(asking.clone());
            assert_eq!(stored, asking);
            assert_eq!(
                (reason, warnings.as_slice()),
                (Reason::WindowsPod, &[WINDOWS.to_owned()][..])
            );
        }
    }
    let mut linux = one_port();
    linux["os"] = json!({ "name": "linux" });
    linux["nodeSelector"] = json!({ "kubernetes.io/os": "linux" });
    let (_, reason, _) = admitted(pod(&json!({ "tkestack.io/portmapping": "" }), &linux));
    assert_eq!(reason, Reason::PortsRequested);
}

#[test]
fn a_protocol_that_the_port_is_not_declared_with_is_warned_of() {
    let spec = json!({ "containers": [{ "ports": [
        { "containerPort": 9040 },
        { "containerPort": 53, "protocol": "UDP" },
        { "containerPort": 53, "protocol": "TCP" },
    ] }] });
    let warnings = |value: &str| {
        let asking = pod(&json!({ "tkestack.io/portmapping": value }), &spec);
        let (stored, reason, warnings) = admitted(asking);
        assert_eq!(reason, Reason::PortsRequested);
        let mark = &stored["metadata"]["annotations"]["tkestack.io/portmapping-request"];
        assert!(mark.is_string(), "the request is resolved all the same");
        warnings
    };
    let warning = &warnings(r#"[{"containerPort":9040,"protocol":"UDP"}]"#)[0];
    assert!(
        warning.contains("declares port 9040 as TCP") && warning.contains("UDP"),
        "{warning}"
    );
    for value in [
        r#"[{"containerPort":9040,"protocol":"TCP"}]"#,
        r#"[{"containerPort":9040}]"#,
        r#"[{"containerPort":53,"protocol":"TCP"}]"#,
        r#"[{"containerPort":53,"protocol":"UDP"}]"#,
        r#"[{"containerPort":1000,"protocol":"UDP"}]"#,
    ] {
        assert_eq!(warnings(value), [""; 0], "{value}");
    }
}

#[test]
fn warnings_are_not_cut_by_the_api_server() {
    for warning in [COPIED_RESULT, CHOSEN_HOST_PORT, NO_PORTS, WINDOWS] {
        // k8s.io/apiserver/pkg/endpoints/filters/warning.go
        assert!(warning.len() <= 256, "{warning}");
    }
}

#[test]
fn the_warning_about_missing_ports_leaves_room_for_an_injected_sidecar() {
    assert!(NO_PORTS.contains("unless another webhook adds a container"));
}

#[test]
fn a_pod_without_ports_is_admitted_with_a_warning_and_loses_its_mark() {
    let annotations =
        json!({ "tkestack.io/portmapping": "", "tkestack.io/portmapping-request": "x" });
    for spec in [Value::Null, json!({}), json!({ "containers": [{}] })] {
        let (stored, reason, warnings) = admitted(pod(&annotations, &spec));
        assert_eq!(
            stored["metadata"]["annotations"],
            json!({ "tkestack.io/portmapping": "" })
        );
        assert_eq!(stored["spec"], spec);
        assert_eq!(reason, Reason::NoPorts);
        assert_eq!(warnings, [NO_PORTS]);
    }
    let copied = pod(&json!({ "tkestack.io/portmapping": RESULT }), &json!({}));
    let (stored, _, warnings) = admitted(copied);
    assert_eq!(
        stored["metadata"]["annotations"],
        json!({ "tkestack.io/portmapping": "" })
    );
    assert_eq!(warnings, [COPIED_RESULT, NO_PORTS]);
}

#[test]
fn a_second_call_adds_ports_that_another_webhook_added() {
    let (mut stored, ..) = admitted(pod(&json!({ "tkestack.io/portmapping": "" }), &one_port()));
    stored["spec"]["initContainers"] =
        json!([{ "restartPolicy": "Always", "ports": [{ "containerPort": 15090 }] }]);
    let (stored, ..) = admitted(stored);
    assert_eq!(
        stored["metadata"]["annotations"]["tkestack.io/portmapping-request"],
        r#"[{"containerPort":9040,"protocol":"TCP"},{"containerPort":15090,"protocol":"TCP"}]"#
    );
    assert_eq!(stored["spec"]["readinessGates"], json!([gate()]));
}

#[test]
fn host_network_pods_and_static_host_ports_get_mark_and_gate() {
    let static_port =
        json!({ "containers": [{ "ports": [{ "containerPort": 80, "hostPort": 8080 }] }] });
    let on_the_node =
        json!({ "hostNetwork": true, "containers": [{ "ports": [{ "containerPort": 80 }] }] });
    for spec in [static_port, on_the_node] {
        let (stored, ..) = admitted(pod(&json!({ "tkestack.io/portmapping": "" }), &spec));
        let mark = &stored["metadata"]["annotations"]["tkestack.io/portmapping-request"];
        assert_eq!(mark, r#"[{"containerPort":80,"protocol":"TCP"}]"#);
        assert_eq!(stored["spec"]["readinessGates"], json!([gate()]));
    }
}

#[test]
fn an_invalid_value_is_denied_with_a_message_that_helps() {
    for (annotation, expected) in [
        ("yes please", "it is neither empty nor a list"),
        ("{}", "it is an object, not a list"),
        ("[]", "it lists no port"),
        ("[{}]", "entry 1: containerPort is missing"),
        (r#"[{"containerPort":0}]"#, "containerPort"),
        (r#"[{"containerPort":70000}]"#, "containerPort"),
        (
            r#"[{"containerPort":"nope"}]"#,
            "no container of the pod declares a port named",
        ),
        (r#"[{"containerPort":80,"protocol":"tcp"}]"#, "protocol"),
        (
            r#"[{"containerPort":80,"hostIP":"localhost"}]"#,
            "is not an IP address",
        ),
        (
            r#"[{"containerPort":80,"extra":1}]"#,
            "the key \"extra\" is unknown",
        ),
        (r#"[{"\u0063ontainerPort":80}]"#, "it contains a backslash"),
    ] {
        let message = denied(annotation, &one_port());
        assert!(message.contains(expected), "{annotation}: {message}");
        assert!(
            message.contains(r#"write "" for every declared port"#),
            "{message}"
        );
        assert!(
            message.starts_with("tkestack.io/portmapping: "),
            "{message}"
        );
    }
}

#[test]
fn more_ports_than_allowed_are_denied() {
    let ports: Vec<_> = (1..=65)
        .map(|port| json!({ "containerPort": port }))
        .collect();
    let spec = json!({ "containers": [{ "ports": ports }] });
    let message = denied("", &spec);
    assert!(
        message.contains("it asks for 65 ports, more than the 64"),
        "{message}"
    );
    assert!(!message.contains("write \"\""), "{message}");
}

#[test]
fn a_long_value_is_quoted_in_part() {
    let message = denied(&"x\u{7}".repeat(10_000), &one_port());
    assert!(message.chars().count() < 1_600, "{}", message.len());
    assert!(!message.contains('\u{7}'));
}

mod policy;
mod property;
