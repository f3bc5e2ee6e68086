//! For every pod: the patch applies, a second pass has nothing to do, nothing but our marks and
//! the gate changes, and the answer is well-formed.

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
    ) -> Value {
        let mut pod = json!({
            "kind": "Pod",
            "apiVersion": "v1",
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

/// The pod without anything that is ours to change.
fn foreign_part(mut pod: Value) -> Value {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_patch_applies_once_and_touches_only_what_is_ours(before in pod()) {
        let verdict_before = verdict(&before);
        let answer = encode("u", &Answer::Verdict(&verdict_before)).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        prop_assert_eq!(&answer["response"]["uid"], "u");
        prop_assert_eq!(&verdict_before, &verdict(&before), "the same again");

        let asks = before["metadata"]["annotations"].get(OURS[0]).is_some();
        let patch: Vec<PatchOperation> = match verdict_before {
            Verdict::Allow { patch, .. } => patch,
            Verdict::Deny(invalid) => {
                prop_assert!(asks);
                prop_assert!(invalid.to_string().chars().count() < 2_000);
                return Ok(());
            }
        };
        prop_assert!(asks || patch.is_empty());
        prop_assert_eq!(answer["response"].get("patch").is_some(), !patch.is_empty());

        let mut after = before.clone();
        json_patch::patch(&mut after, &patch).expect("the patch applies");
        prop_assert_eq!(foreign_part(after.clone()), foreign_part(before));
        let Verdict::Allow { patch: again, .. } = verdict(&after) else {
            return Err(TestCaseError::fail("denied at the second pass"));
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
    fn no_bytes_make_it_panic(body in any::<Vec<u8>>()) {
        let _ = parse(&body);
    }

    #[test]
    fn no_damage_to_a_review_makes_it_panic(pod in pod(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
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
