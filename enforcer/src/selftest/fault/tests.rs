use serde_json::{Value, json};

use super::*;

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn policy(account: &str) -> ValidatingAdmissionPolicy {
    let expression = format!("request.userInfo.username == '{account}'");
    from(json!({ "metadata": {}, "spec": { "matchConditions": [
        { "name": "another", "expression": "true" }, { "name": "it", "expression": expression },
    ] } }))
}

#[test]
fn a_policy_must_name_the_account_of_its_own_namespace() {
    for name in ["enforcer", "webhook"] {
        let ours = policy(&format!("system:serviceaccount:there:{name}"));
        let found =
            |policy, bound, namespace| of_policy("p", policy, bound, account(namespace, name));
        assert_eq!(found(Some(&ours), true, "there"), None);
        // a longer name with the same end or beginning is another account
        for other in ["elsewhere", "ther", "there2"] {
            let text = found(Some(&ours), true, other).unwrap().to_string();
            let missing = format!("system:serviceaccount:{other}:{name}");
            assert!(text.contains(&missing), "{text}");
        }
        let absent = Some(Fault::NoPolicy("p"));
        assert_eq!(found(Some(&ours), false, "there"), absent, "no binding");
        assert_eq!(found(None, true, "there"), absent);
    }
    let enforcers = policy("system:serviceaccount:there:enforcer");
    let found = of_policy("p", Some(&enforcers), true, account("there", "webhook"));
    assert!(found.is_some(), "the other account");
}

#[test]
fn a_registration_without_a_ca_bundle_is_a_fault() {
    let registration = |bundle: Value| -> MutatingWebhookConfiguration {
        from(json!({ "metadata": {}, "webhooks": [{
            "name": "w", "admissionReviewVersions": [], "sideEffects": "None", "clientConfig": { "caBundle": bundle },
        }] }))
    };
    for (bundle, fault) in [
        (json!("YQ=="), false),
        (json!(""), true),
        (Value::Null, true),
    ] {
        let found = of_registration("r", Some(&registration(bundle)));
        assert_eq!(found, fault.then_some(Fault::NoCaBundle("r")));
    }
    assert_eq!(of_registration("r", None), Some(Fault::NoRegistration("r")));
}

#[test]
fn an_old_event_about_pods_that_exist_by_now_is_no_fault() {
    let set = |scheduled: i32| -> DaemonSet {
        from(json!({ "metadata": {}, "status": {
            "desiredNumberScheduled": 2, "currentNumberScheduled": scheduled, "numberMisscheduled": 0, "numberReady": 0,
        } }))
    };
    let event = |at: &str, message: &str| -> Event {
        from(json!({
            "metadata": { "namespace": "there" }, "reason": "FailedCreate", "message": message, "lastTimestamp": at,
            "involvedObject": { "kind": "DaemonSet", "name": "enforcer" },
        }))
    };
    let events = [
        event("2024-01-01T10:00:02Z", "the last"),
        event("2024-01-01T10:00:01Z", "an earlier one"),
    ];
    assert_eq!(of_missing_pods(Some(&set(2)), None, &events), []);
    let found = of_missing_pods(Some(&set(1)), None, &events);
    let text = found[0].to_string();
    assert!(found.len() == 1 && text.contains("the last"), "{text}");
    assert!(text.contains("namespace there pod-security"), "{text}");
}

#[test]
fn a_node_without_a_ready_enforcer_is_named_once() {
    let nodes: Vec<Node> = ["a", "b", "c"]
        .map(|name| from(json!({ "metadata": { "name": name } })))
        .into();
    let pod = |node: &str, ready: &str| -> Pod {
        from(json!({
            "metadata": { "name": format!("enforcer-{node}") },
            "spec": { "nodeName": node, "containers": [] },
            "status": { "conditions": [{ "type": "Ready", "status": ready, "message": "why" }] },
        }))
    };
    // during an update a node has two
    let pods = [pod("a", "False"), pod("a", "True"), pod("b", "False")];
    let faults = of_nodes(&nodes, &pods);
    let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts[0].contains("node b: its pod enforcer-b is not Ready (why)"),
        "{texts:?}"
    );
    assert!(
        texts[1].contains("node c: the DaemonSet enforcer has no pod there"),
        "{texts:?}"
    );
}
