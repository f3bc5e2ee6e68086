//! For any pod: the patch applies, a second pass changes nothing, only our annotations and our
//! readiness gate change, and the response is well-formed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::mutate::{Verdict, judge};
use crate::review::{Answer, Subject, encode, parse};
use json_patch::PatchOperation;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

const OURS: [&str; 2] = ["tkestack.io/portmapping", "tkestack.io/portmapping-request"];
const PER_PORT: &str = "host-port.tkestack.io/";

fn annotation_key() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(OURS[0].to_owned()),
        Just(OURS[1].to_owned()),
        "host-port\\.tkestack\\.io/[a-z0-9~/-]{0,6}",
        "[a-z~/.\"\\\\\u{e9}]{1,12}",
        any::<String>(),
    ]
}

fn annotation_value() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => Just(String::new()),
        1 => Just(" \n".to_owned()),
        2 => any::<u16>().prop_map(|port| format!(r#"[{{"containerPort":{port}}}]"#)),
        1 => Just(r#"[{"containerPort":"web","protocol":"TCP"}]"#.to_owned()),
        1 => any::<u16>().prop_map(|port| format!(
            r#"[{{"hostPort":{port},"containerPort":80,"protocol":"TCP","podName":"p","podIP":"1.2.3.4"}}]"#
        )),
        1 => any::<String>(),
        // letters that our messages do not contain, plain or where a parser repeats them
        1 => "[\u{430}-\u{44f}\n]{0,500}",
        1 => "[\u{430}-\u{44f}]{1,500}".prop_map(|name| format!(r#"[{{"{name}":1}}]"#)),
        1 => "[\u{430}-\u{44f}]{1,500}".prop_map(|ip| format!(r#"[{{"containerPort":1,"hostIP":"{ip}"}}]"#)),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let name = prop_oneof![Just("web"), Just("dns"), Just("")];
    let protocol = prop_oneof![
        Just(json!("TCP")),
        Just(json!("UDP")),
        Just(json!("SCTP")),
        Just(Value::Null),
        Just(json!("x"))
    ];
    (-1_i64..70_000, name, protocol, prop_oneof![Just(0_i64), 1_i64..70_000]).prop_map(
        |(port, name, protocol, host)| {
            json!({ "containerPort": port, "name": name, "protocol": protocol, "hostPort": host })
        },
    )
}

fn container() -> impl Strategy<Value = Value> {
    let restart = prop_oneof![
        Just(Value::Null),
        Just(json!("Always")),
        Just(json!("Never"))
    ];
    let ports = prop_oneof![vec(port(), 0..4).prop_map(Value::from), Just(Value::Null)];
    (restart, ports).prop_map(|(restart, ports)| {
        json!({ "name": "c", "restartPolicy": restart, "ports": ports, "env": [{ "name": "A" }] })
    })
}

fn gates() -> impl Strategy<Value = Option<Value>> {
    let gate = prop_oneof![
        Just(json!({ "conditionType": "tkestack.io/portmapping" })),
        Just(json!({ "conditionType": "example.com/other", "future": 1 })),
    ];
    prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        vec(gate, 0..3).prop_map(|g| Some(g.into()))
    ]
}

/// A field that a later Kubernetes version may add.
fn foreign() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

prop_compose! {
    fn pod()(
        annotations in prop_oneof![
            8 => btree_map(annotation_key(), annotation_value(), 0..6).prop_map(|map| json!(map)),
            1 => Just(Value::Null),
        ],
        ask in proptest::option::of(annotation_value()),
        containers in vec(container(), 0..4),
        init in vec(container(), 0..3),
        gates in gates(),
        host_network in prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from)],
        version in prop_oneof![Just("v1"), Just("v2alpha7"), Just("")],
        unknown in foreign(),
    ) -> Value {
        let mut pod = json!({
            "kind": "Pod",
            "apiVersion": version,
            "future": unknown,
            "metadata": { "name": "p", "labels": { "a/b": "~" }, "annotations": annotations },
            "spec": {
                "hostNetwork": host_network,
                "containers": containers,
                "initContainers": init,
                "tolerations": [{ "key": "k" }],
            },
        });
        if let Some(ask) = ask {
            pod["metadata"]["annotations"][OURS[0]] = json!(ask);
        }
        if let Some(gates) = gates {
            pod["spec"]["readinessGates"] = gates;
        }
        pod
    }
}

fn verdict(pod: &Value) -> Verdict {
    let review = json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u",
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "operation": "CREATE",
            "object": pod,
        },
    });
    let review = parse(review.to_string().as_bytes()).expect("a review");
    let Subject::Pod(pod) = review.subject else {
        panic!("{:?}", review.subject)
    };
    judge(&pod, 64)
}

/// The pod without what this webhook may change.
fn unchanged_part(mut pod: Value) -> Value {
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|key, _| !OURS.contains(&key.as_str()) && !key.starts_with(PER_PORT));
    }
    let gates = pod["spec"]
        .as_object_mut()
        .unwrap()
        .remove("readinessGates");
    let mut others = gates
        .and_then(|gates| gates.as_array().cloned())
        .unwrap_or_default();
    others.retain(|gate| gate["conditionType"] != "tkestack.io/portmapping");
    pod["spec"]["readinessGates"] = others.into();
    pod
}

/// Uid, code and reason are always set, the patch is base64, and at most 200 characters of the user's
/// text are repeated, on one line.
fn well_formed(response: &Value, verdict: &Verdict) -> Result<(), TestCaseError> {
    prop_assert_eq!(&response["uid"], "u");
    let status = &response["status"];
    prop_assert!(status["reason"].as_str().is_some_and(|it| !it.is_empty()));
    let Verdict::Allow { patch, .. } = verdict else {
        prop_assert_eq!(
            (&response["allowed"], &status["code"]),
            (&json!(false), &json!(400))
        );
        prop_assert!(response.get("patch").is_none());
        let message = status["message"].as_str().unwrap();
        let repeated = message
            .chars()
            .filter(|c| ('\u{430}'..='\u{44f}').contains(c));
        prop_assert!(repeated.count() <= 200, "{}", message);
        prop_assert!(!message.contains(char::is_control), "{}", message);
        return Ok(());
    };
    prop_assert_eq!(
        (&response["allowed"], &status["code"]),
        (&json!(true), &json!(200))
    );
    let Some(encoded) = response.get("patch") else {
        prop_assert!(patch.is_empty() && response.get("patchType").is_none());
        return Ok(());
    };
    prop_assert_eq!(&response["patchType"], "JSONPatch");
    let bytes = STANDARD.decode(encoded.as_str().unwrap()).unwrap();
    let sent: Vec<PatchOperation> = serde_json::from_slice(&bytes).unwrap();
    prop_assert_eq!(&sent, patch);
    Ok(())
}

/// A pod as large as they come: 64 containers, 512 ports, a megabyte of annotations, deep nesting.
fn huge(mut pod: Value, ask: &str) -> Value {
    let ports = |container: i64| -> Vec<Value> {
        let number = |port| container * 8 + port + 1;
        let port =
            |port| json!({ "containerPort": number(port), "name": format!("p{}", number(port)) });
        (0..8).map(port).collect()
    };
    let container = |it| json!({ "name": format!("c{it}"), "ports": ports(it), "env": [{ "value": "\u{1f600}" }] });
    pod["spec"]["initContainers"] = json!([]);
    pod["spec"]["containers"] = (0..64).map(container).collect();
    let mut deep = json!("innermost");
    for _level in 0..100 {
        deep = json!({ "deeper": [deep] });
    }
    pod["spec"]["future"] = deep;
    let mut annotations = serde_json::Map::new();
    for number in 0..1_000 {
        annotations.insert(format!("example.com/{number}"), "\u{e9}".repeat(512).into());
    }
    annotations.insert(OURS[0].to_owned(), ask.into());
    pod["metadata"]["annotations"] = annotations.into();
    pod
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn huge_pods_are_judged_like_small_ones(
        before in pod(),
        (ask, valid) in prop_oneof![
            Just((r#"[{"containerPort":"p500"},{"containerPort":7}]"#, true)),
            Just(("", false)), // more ports than one pod may have
        ],
    ) {
        let before = huge(before, ask);
        match verdict(&before) {
            Verdict::Allow { patch, .. } => {
                prop_assert!(valid);
                let mut after = before.clone();
                json_patch::patch(&mut after, &patch).expect("the patch applies");
                let mark = &after["metadata"]["annotations"][OURS[1]];
                let mark: Value = serde_json::from_str(mark.as_str().unwrap()).unwrap();
                prop_assert_eq!(&mark[0]["containerPort"], 7);
                prop_assert_eq!(&mark[1]["containerPort"], 500);
                prop_assert_eq!(unchanged_part(after), unchanged_part(before));
            }
            Verdict::Deny(invalid) => {
                prop_assert!(!valid);
                prop_assert!(invalid.to_string().contains("512 ports"), "{}", invalid);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_patch_applies_once_and_changes_only_what_is_ours(before in pod()) {
        let verdict_before = verdict(&before);
        let response = encode("u", &Answer::Verdict(&verdict_before)).unwrap();
        let response: Value = serde_json::from_slice(&response).unwrap();
        well_formed(&response["response"], &verdict_before)?;
        prop_assert_eq!(&verdict_before, &verdict(&before), "the verdict is deterministic");

        let asks = before["metadata"]["annotations"].get(OURS[0]).is_some();
        let patch: Vec<PatchOperation> = match verdict_before {
            Verdict::Allow { patch, .. } => patch,
            Verdict::Deny(invalid) => {
                prop_assert!(asks);
                prop_assert!(invalid.to_string().chars().count() < 500, "{}", invalid);
                return Ok(());
            }
        };
        prop_assert!(asks || patch.is_empty());
        prop_assert_eq!(response["response"].get("patch").is_some(), !patch.is_empty());

        let mut after = before.clone();
        json_patch::patch(&mut after, &patch).expect("the patch applies");
        prop_assert_eq!(unchanged_part(after.clone()), unchanged_part(before));
        let Verdict::Allow { patch: again, .. } = verdict(&after) else {
            return Err(TestCaseError::fail("denied by the second pass"));
        };
        prop_assert_eq!(again, vec![]);
        if asks {
            let annotations = after["metadata"]["annotations"].as_object().unwrap();
            prop_assert!(annotations.keys().all(|key| !key.starts_with(PER_PORT)));
            let gates = after["spec"]["readinessGates"].as_array().cloned().unwrap_or_default();
            let ours = gates.iter().filter(|g| g["conditionType"] == OURS[0]).count();
            let marked = annotations.contains_key(OURS[1]);
            prop_assert!(!marked || ours >= 1, "a mark comes with a gate");
        }
    }

    #[test]
    fn any_bytes_are_parsed_without_a_panic(body in any::<Vec<u8>>()) {
        let _ = parse(&body);
    }

    #[test]
    fn a_damaged_review_is_parsed_without_a_panic(pod in pod(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let review = json!({
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "u",
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "operation": "CREATE",
                "object": pod,
            },
        });
        let mut bytes = review.to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(review) = parse(&bytes) && let Subject::Pod(pod) = review.subject {
            let _ = encode(&review.uid, &Answer::Verdict(&judge(&pod, 64))).unwrap();
        }
    }
}
