//! A user who applies a pod template with a broken value gets a warning.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::support::caller::Who::{Admin, User};
use crate::support::caller::{Call, Form};
use crate::support::objects::{At, annotated, create, pod, pod_spec, post};
use crate::support::rows::Outcome::{Allowed, Warned};
use crate::support::rows::{Row, row};
use crate::support::world::on_both;
use crate::support::{ANNOTATION, LABEL, RESULT};

const NO_REQUEST: &str = "in the pod template is not a valid request; write ";
/// The webhook's words about a pod with such a value, quotes escaped as in the Warning header.
const COPIED: &str = r#"tkestack.io/portmapping: the value is the result of another pod and counts as \"\"; the pod gets host ports of its own"#;
const CHOSEN: &str = r#"tkestack.io/portmapping: a hostPort cannot be chosen here, so the value counts as \"\"; for a certain host port use ports[].hostPort of the container"#;
const MISPLACED: &str = "itself asks for nothing; write it to the metadata of its pod template";

fn template(value: Option<&str>, restart: &str) -> Value {
    let mut template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": pod_spec() });
    template["spec"]["restartPolicy"] = json!(restart);
    if let Some(value) = value {
        template["metadata"]["annotations"][ANNOTATION] = json!(value);
    }
    template
}

/// Every kind that makes pods: its name, group and collection, and a spec around a template.
#[rustfmt::skip] // a table is read by its columns
fn kinds(value: Option<&str>) -> [(&'static str, &'static str, &'static str, Value); 7] {
    let (always, never) = (template(value, "Always"), template(value, "Never"));
    let select = json!({ "matchLabels": { "a": "b" } });
    [
        ("Deployment",            "apps/v1",  "deployments",  json!({ "replicas": 0, "selector": select, "template": always })),
        ("ReplicaSet",            "apps/v1",  "replicasets",  json!({ "replicas": 0, "selector": select, "template": always })),
        ("StatefulSet",           "apps/v1",  "statefulsets", json!({ "replicas": 0, "serviceName": "x", "selector": select, "template": always })),
        ("DaemonSet",             "apps/v1",  "daemonsets",   json!({ "selector": select, "template": always })),
        ("Job",                   "batch/v1", "jobs",         json!({ "suspend": true, "template": never })),
        ("CronJob",               "batch/v1", "cronjobs",     json!({ "schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": { "spec": { "template": never } } })),
        ("ReplicationController", "v1",       "replicationcontrollers", json!({ "replicas": 0, "selector": { "a": "b" }, "template": always })),
    ]
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (what, namespace, value, outcome) in [
        ("without the annotation", "open", None, Allowed),
        ("that asks", "open", Some(""), Allowed),
        (
            "with a broken value",
            "open",
            Some("yes"),
            Warned(NO_REQUEST),
        ),
        ("with a copied result", "open", Some(RESULT), Warned(COPIED)),
        (
            "with a host port of its choice",
            "open",
            Some(r#"[{"containerPort":9040,"hostPort":7001}]"#),
            Warned(CHOSEN),
        ),
        ("that asks in baseline", "baseline", Some(""), Warned(LABEL)),
        (
            "without the annotation in baseline",
            "baseline",
            None,
            Allowed,
        ),
    ] {
        for (kind, group, plural, spec) in kinds(value) {
            let does = format!("applies a {kind} {what}");
            let manifest = object(kind, group, &spec);
            let call = post(path(group, namespace, plural), manifest);
            rows.push(row(User, does, call, outcome.clone()));
        }
    }
    rows
}

fn object(kind: &str, group: &str, spec: &Value) -> Value {
    json!({ "apiVersion": group, "kind": kind, "metadata": { "name": "new" }, "spec": spec })
}

fn path(group: &str, namespace: &str, plural: &str) -> String {
    let root = if group == "v1" { "/api" } else { "/apis" };
    format!("{root}/{group}/namespaces/{namespace}/{plural}")
}

/// Wrong keys that a user could write.
const TYPOS: [&str; 3] = [
    "tkestack.io/port-mapping",
    "tkestack.io/portmappings",
    "tkestack.io/portMapping",
];

/// The annotation where nothing reads it, or a key that nothing reads.
fn silent_misses() -> Vec<Row> {
    let mut rows = Vec::new();
    let told = |key: &str| -> &'static str {
        match key {
            "tkestack.io/port-mapping" => "nothing reads the annotation tkestack.io/port-mapping;",
            "tkestack.io/portmappings" => "nothing reads the annotation tkestack.io/portmappings;",
            _ => "nothing reads the annotation tkestack.io/portMapping;",
        }
    };
    for key in TYPOS {
        let asks = annotated(pod("new"), json!({ key: "" }));
        let does = format!("creates a pod with {key}");
        rows.push(row(User, does, create("open", asks), Warned(told(key))));
        let does = format!("adds {key} to a pod");
        let note = At("open", "plain", "").note(key, "");
        rows.push(row(User, does, note, Warned(told(key))));
    }
    for (kind, group, plural, spec) in kinds(None) {
        let url = path(group, "open", plural);
        let mut typo = object(kind, group, &spec);
        let template = match kind {
            "CronJob" => &mut typo["spec"]["jobTemplate"]["spec"]["template"],
            _ => &mut typo["spec"]["template"],
        };
        template["metadata"]["annotations"] = json!({ TYPOS[0]: "" });
        let does = format!("applies a {kind} with a typo in the template");
        let call = post(url.clone(), typo);
        rows.push(row(User, does, call, Warned(told(TYPOS[0]))));

        let misplaced = annotated(object(kind, group, &spec), json!({ ANNOTATION: "" }));
        let does = format!("applies a {kind} with the annotation outside the template");
        let call = post(url.clone(), misplaced.clone());
        rows.push(row(User, does, call, Warned(MISPLACED)));

        // the Deployment controller copies a Deployment's annotations to its ReplicaSets
        let mut owned = misplaced;
        owned["metadata"]["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": "Deployment",
            "name": "x", "uid": "u", "controller": true }]);
        let does = format!("creates a {kind} for a controller");
        rows.push(row(User, does, post(url, owned), Allowed));
    }
    for (kind, group, plural, spec) in kinds(Some("")) {
        let both = annotated(object(kind, group, &spec), json!({ ANNOTATION: "" }));
        let does = format!("applies a {kind} with the annotation in both places");
        rows.push(row(
            User,
            does,
            post(path(group, "open", plural), both),
            Allowed,
        ));
    }
    let other = annotated(pod("new"), json!({ "x/y": "tkestack.io/port-mapping" }));
    rows.push(row(
        User,
        "creates a pod that mentions a typo",
        create("open", other),
        Allowed,
    ));
    rows
}

#[test]
fn a_typo_in_the_key_or_the_annotation_outside_the_template_gives_a_warning() -> Result<()> {
    on_both(|session| {
        session.check(&silent_misses())?;
        // of a pod with many annotations only the number is compared before they are read
        let many = (0..200).map(|n| (format!("x/{n}"), json!("")));
        let many: Value = many.collect::<serde_json::Map<_, _>>().into();
        session.done(User, &create("open", annotated(pod("many"), many)))?;
        let note = |key: &str| At("open", "many", "").note(key, "1");
        let told = "nothing reads the annotation tkestack.io/port-mapping;";
        let outcome = session.check(&[
            row(User, "adds a typo to 200", note(TYPOS[0]), Warned(told)),
            row(User, "changes one of 200", note("x/7"), Allowed),
        ]);
        session.done(Admin, &At("open", "many", "").delete())?;
        outcome
    })
}

#[test]
fn a_user_who_applies_a_broken_template_is_warned() -> Result<()> {
    on_both(|session| session.check(&rows()))
}

#[test]
fn the_controller_of_a_deployment_gets_the_refusal_of_the_warning() -> Result<()> {
    on_both(|session| {
        let (kind, group, plural, mut spec) = kinds(Some(""))[0].clone();
        spec["replicas"] = json!(1);
        let call = post(path(group, "baseline", plural), object(kind, group, &spec));
        let answer = session.call(User, &call)?;
        ensure!(
            answer.is_fine()
                && answer
                    .warnings
                    .iter()
                    .any(|text| text.contains("will be refused")),
            "{answer:?}"
        );
        let events = Call {
            method: "GET",
            path: "/api/v1/namespaces/baseline/events".into(),
            form: Form::Json,
            body: Value::Null,
        };
        session.eventually("the event of a pod that could not be created", || {
            let events = session.done(Admin, &events)?;
            let reported = events["items"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|event| {
                    event["reason"] == "FailedCreate"
                        && event["message"]
                            .as_str()
                            .is_some_and(|text| text.contains(LABEL))
                });
            ensure!(reported, "{events}");
            Ok(())
        })?;
        let new = Call {
            method: "DELETE",
            path: format!("{}/new", path(group, "baseline", plural)),
            ..events
        };
        session.done(Admin, &new).map(drop)
    })
}
