//! What may an enforcer write? Our annotations and our condition, on pods of its node, through pods/status.

use anyhow::Result;
use e2e::Minor;
use serde_json::{Value, json};

use crate::support::caller::Call;
use crate::support::caller::Who::{
    self, Enforcer, MightyEnforcer, OtherEnforcer, UnboundEnforcer, User,
};
use crate::support::objects::{
    At, SYSTEM, annotated, annotations, condition, create, mapping, pod, post,
};
use crate::support::rows::Outcome::{self, Allowed, Invalid, NoEffect, NoRight};
use crate::support::rows::{Policy, Row, row};
use crate::support::world::{Session, on_both};
use crate::support::{ANNOTATION, MARK, PER_PORT, RESULT};

const METADATA: &str = "the enforcer may not change the pod's metadata";
const ANNOTATIONS: &str = "the enforcer may not change annotations of others";
const STATUS: &str = "the enforcer may not change the pod's status";
const CONDITIONS: &str = "the enforcer may not change conditions of others";
const STATUS_ONLY: &str = "the enforcer writes pods through pods/status only";

fn refused(says: &'static str) -> Outcome {
    Outcome::Refused(Policy::Enforcer, says)
}

#[rustfmt::skip] // a table is read by its columns
fn own_node(minor: Minor) -> Vec<Row> {
    let status = |pod, body: Value| At("open", pod, "status").patch(body);
    let merge = |body: Value| At("open", "mapped", "status").merge(body);
    let note = |key: &str, value: Value| At("open", "mapped", "status").note(key, value);
    let conditions = |all: Value| status("mapped", json!({ "status": { "conditions": all } }));
    let applied = json!({ "metadata": { "annotations": { ANNOTATION: RESULT, PER_PORT: "23817" } },
        "status": { "conditions": [condition("True", "Mapped")] } });
    let nominates = match minor {
        Minor::V1_33 => refused(STATUS),
        _ => Invalid, // by the API server itself, before any policy
    };
    vec![
        row(Enforcer, "maps: annotation, mark, per-port, condition in one patch", status("asked", mapping()), Allowed),
        row(Enforcer, "maps a pod that was annotated later",  status("plain", mapping()),                                         Allowed),
        row(Enforcer, "maps by server-side apply",            At("open", "mapped", "status").apply("enforcer", applied),          Allowed),
        row(Enforcer, "maps a pod of the system's namespace", At(SYSTEM, "mapped", "status").patch(mapping()),                    Allowed),
        row(Enforcer, "maps a terminating pod",               status("terminating", mapping()),                                   Allowed),
        row(Enforcer, "writes where the level became baseline", At("turned", "mapped", "status").note(PER_PORT, "5"),             Allowed),
        row(Enforcer, "changes its result",                   note(ANNOTATION, json!(RESULT.replace("23817", "23818"))),          Allowed),
        row(Enforcer, "sets its condition to False",          conditions(json!([condition("False", "DataplaneError")])),          Allowed),
        row(Enforcer, "removes its condition",                conditions(json!([{ "type": ANNOTATION, "$patch": "delete" }])),    Allowed),
        row(Enforcer, "removes its annotations",              status("mapped", annotations(&json!({ ANNOTATION: null, MARK: null, PER_PORT: null }))), Allowed),
        row(Enforcer, "changes another annotation",           note("x/y", json!("2")),                                            refused(ANNOTATIONS)),
        row(Enforcer, "removes another annotation",           note("x/y", Value::Null),                                           refused(ANNOTATIONS)),
        row(Enforcer, "adds another annotation",              note("a", json!("b")),                                              refused(ANNOTATIONS)),
        row(Enforcer, "adds an annotation that looks like ours", note("tkestack.io/portmapping2", json!("b")),                    refused(ANNOTATIONS)),
        row(Enforcer, "adds an annotation that ends like ours", note("my-host-port.tkestack.io/web", json!("b")),                 refused(ANNOTATIONS)),
        row(Enforcer, "adds a label",                         status("mapped", json!({ "metadata": { "labels": { "a": "b" } } })), refused(METADATA)),
        row(Enforcer, "adds a finalizer",                     status("mapped", json!({ "metadata": { "finalizers": ["a.b/c"] } })), refused(METADATA)),
        row(Enforcer, "changes the phase",                    status("mapped", json!({ "status": { "phase": "Failed" } })),       refused(STATUS)),
        row(Enforcer, "changes the pod's addresses",          merge(json!({ "status": { "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }] } })), refused(STATUS)),
        row(Enforcer, "changes the node's addresses",         merge(json!({ "status": { "hostIP": "10.0.0.1", "hostIPs": [{ "ip": "10.0.0.1" }] } })), refused(STATUS)),
        row(Enforcer, "removes the start time",               status("mapped", json!({ "status": { "startTime": null } })),       refused(STATUS)),
        row(Enforcer, "writes a status message",              status("mapped", json!({ "status": { "message": "x" } })),          refused(STATUS)),
        row(Enforcer, "removes the containers' statuses",     merge(json!({ "status": { "containerStatuses": [] } })),            refused(STATUS)),
        row(Enforcer, "changes a container's status",         status("mapped", json!({ "status": { "containerStatuses": [{ "name": "echo", "restartCount": 7 }] } })), refused(STATUS)),
        row(Enforcer, "removes the status",                   merge(json!({ "status": null })),                                   refused("the enforcer may not change")),
        row(Enforcer, "changes another condition",            conditions(json!([{ "type": "Ready", "status": "Unknown" }])),      refused(CONDITIONS)),
        row(Enforcer, "adds another condition",               conditions(json!([{ "type": "x/y", "status": "True" }])),           refused(CONDITIONS)),
        row(Enforcer, "removes another condition",            conditions(json!([{ "type": "Initialized", "$patch": "delete" }])), refused(CONDITIONS)),
        row(Enforcer, "changes the QoS class",                status("mapped", json!({ "status": { "qosClass": "Guaranteed" } })), Invalid),
        row(Enforcer, "nominates a node",                     status("mapped", json!({ "status": { "nominatedNodeName": "node2" } })), nominates),
        row(Enforcer, "changes its pod's owner",              status("mapped", json!({ "metadata": { "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "u" }] } })), NoEffect),
        row(Enforcer, "changes the spec through pods/status", status("mapped", json!({ "spec": { "activeDeadlineSeconds": 5 } })), NoEffect),
    ]
}

#[rustfmt::skip] // a table is read by its columns
fn elsewhere() -> Vec<Row> {
    let maps = |pod| At("open", pod, "status").patch(mapping());
    let not = |says| refused(says);
    vec![
        row(Enforcer,        "maps a pod of another node",                  maps("elsewhere"),   not(r#"an enforcer of node "node1" may not write a pod of node "node2""#)),
        row(OtherEnforcer,   "maps a pod of another node",                  maps("asked"),       not(r#"an enforcer of node "node2" may not write a pod of node "node1""#)),
        row(OtherEnforcer,   "maps a pod of its own node",                  maps("elsewhere"),   Allowed),
        row(UnboundEnforcer, "maps a pod, with a token that names no node", maps("asked"),       not(r#"an enforcer of node "" may not write a pod of node "node1""#)),
        row(UnboundEnforcer, "maps an unscheduled pod, with a token that names no node", maps("unscheduled"), not(r#"an enforcer of node "" may not write a pod of node """#)),
        row(Enforcer,        "maps an unscheduled pod",                     maps("unscheduled"), not(r#"may not write a pod of node """#)),
        row(MightyEnforcer,  "maps a pod of another node",                  maps("elsewhere"),   not(r#"may not write a pod of node "node2""#)),
    ]
}

/// Everything else, by the enforcer and by an enforcer with all rights in RBAC.
#[rustfmt::skip] // a table is read by its columns
fn other_verbs(session: &Session<'_>) -> Result<Vec<Row>> {
    let (mapped, status) = (At("open", "mapped", ""), At("open", "mapped", "status"));
    let evict = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "mapped" } });
    let bind = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "unscheduled" }, "target": { "kind": "Node", "name": "node1" } });
    let ephemeral = json!({ "spec": { "ephemeralContainers": [{ "name": "debug", "image": "localhost/echo:1" }] } });
    let resize = json!({ "spec": { "containers": [{ "name": "echo", "resources": { "requests": { "cpu": "2m" } } }] } });
    let mut exec = At("open", "mapped", "exec").post(Value::Null);
    exec.path.push_str("?command=id&stdout=true");
    let all = Call { method: "DELETE", ..post("/api/v1/namespaces/open/pods", Value::Null) };
    let whole = session.done(Who::Admin, &mapped.get())?;
    let put = Call { method: "PUT", ..post(mapped.path(), whole.clone()) };
    let mut labelled = whole;
    labelled["metadata"]["labels"]["a"] = json!("b");
    let put_status = Call { method: "PUT", ..post(status.path(), labelled) };
    // the policy for users guards pods without a subresource
    let by_users = |says| Outcome::Refused(Policy::Users, says);
    let calls = [
        ("patches a pod",            mapped.patch(annotations(&json!({ ANNOTATION: RESULT, PER_PORT: "1" }))), by_users(STATUS_ONLY)),
        ("replaces a pod",           put,                                                        by_users(STATUS_ONLY)),
        ("replaces a pod's status with a label", put_status,                                     refused(METADATA)),
        ("creates a pod",            create("open", annotated(pod("new"), json!({ ANNOTATION: "" }))), refused(STATUS_ONLY)),
        ("deletes a pod",            mapped.delete(),                                            refused(STATUS_ONLY)),
        ("deletes all pods",         all,                                                        refused(STATUS_ONLY)),
        ("evicts a pod",             At("open", "mapped", "eviction").post(evict),               refused(STATUS_ONLY)),
        ("binds a pod",              At("open", "unscheduled", "binding").post(bind.clone()),    refused(STATUS_ONLY)),
        ("binds a pod in the old way", post("/api/v1/namespaces/open/bindings", bind),           refused(STATUS_ONLY)),
        ("runs a program in a pod",  exec,                                                       refused(STATUS_ONLY)),
        ("adds an ephemeral container", At("open", "mapped", "ephemeralcontainers").patch(ephemeral), refused(STATUS_ONLY)),
        ("resizes a pod",            At("open", "mapped", "resize").patch(resize),               refused(STATUS_ONLY)),
    ];
    let twice = calls.into_iter().flat_map(|(does, call, outcome)| [
        row(Enforcer,       does, call.clone(), NoRight),
        row(MightyEnforcer, does, call,         outcome),
    ]);
    Ok(twice.collect())
}

#[test]
fn an_enforcer_writes_our_annotations_and_our_condition_and_nothing_else() -> Result<()> {
    on_both(|session| session.check(&own_node(session.minor())))
}

#[test]
fn an_enforcer_writes_pods_of_the_node_that_its_token_names() -> Result<()> {
    on_both(|session| session.check(&elsewhere()))
}

#[test]
fn an_enforcer_cannot_write_a_pod_in_any_other_way() -> Result<()> {
    on_both(|session| session.check(&other_verbs(session)?))
}

/// Checks that the pods of the fixture are what the table above needs.
#[test]
fn the_pods_of_the_tables_are_as_their_names_say() -> Result<()> {
    on_both(|session| {
        for (pod, node, value) in [
            ("mapped", Some("node1"), Some(RESULT)),
            ("asked", Some("node1"), Some("")),
            ("plain", Some("node1"), None),
            ("elsewhere", Some("node2"), Some("")),
            ("unscheduled", None, Some("")),
        ] {
            let stored = session.done(User, &At("open", pod, "").get())?;
            anyhow::ensure!(
                stored["spec"]["nodeName"].as_str() == node
                    && stored["metadata"]["annotations"][ANNOTATION].as_str() == value,
                "{pod}: {stored}"
            );
        }
        Ok(())
    })
}
