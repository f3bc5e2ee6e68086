//! Results, marks and conditions that are not the enforcer's: refused for every writer, and by
//! which way ever.

use anyhow::Result;
use serde_json::{Value, json};

use crate::hostile::{GOOD, HOSTILE, long};
use crate::support::caller::Call;
use crate::support::caller::Who::{Admin, Kubelet, Scheduler, User};
use crate::support::objects::{At, annotations, condition, post};
use crate::support::rows::Outcome::{Allowed, NoEffect};
use crate::support::rows::{Row, not_through_status, refused, row};
use crate::support::world::{Session, on_both};
use crate::support::{ANNOTATION, MARK, PER_PORT, RESULT, WAY_OUT};

const NO_MARK: &str = "tkestack.io/portmapping-request is written by the webhook only";
const NO_PER_PORT: &str = "host-port.tkestack.io/* is written by the enforcer only";

#[rustfmt::skip] // a table is read by its columns
fn rows(session: &Session<'_>) -> Result<Vec<Row>> {
    let other_result = RESULT.replace("23817", "23818");
    let mut rows = Vec::new();
    for way in ["", "status"] {
        let note = |pod, key: &str, value: Value| At("open", pod, way).note(key, value);
        let does = |what: &str| format!("{what} through pods/{way}");
        let refused = |says| if way.is_empty() { refused(says) } else { not_through_status() };
        rows.extend([
            row(User,    does("writes a result"),                note("plain", ANNOTATION, json!(RESULT)),         refused(WAY_OUT)),
            row(User,    does("writes a result over a request"), note("asked", ANNOTATION, json!(RESULT)),         refused(WAY_OUT)),
            row(User,    does("changes a result"),               note("mapped", ANNOTATION, json!(other_result)),  refused(WAY_OUT)),
            row(User,    does("writes a mark"),                  note("plain", MARK, json!("[]")),                 refused(NO_MARK)),
            row(User,    does("changes a mark"),                 note("marked", MARK, json!(r#"[{"containerPort":1}]"#)), refused(NO_MARK)),
            row(User,    does("removes a mark"),                 note("marked", MARK, Value::Null),                refused(NO_MARK)),
            row(User,    does("writes a per-port annotation"),   note("plain", PER_PORT, json!("1")),              refused(NO_PER_PORT)),
            row(User,    does("changes a per-port annotation"),  note("mapped", PER_PORT, json!("1")),             refused(NO_PER_PORT)),
            row(User,    does("removes a per-port annotation"),  note("mapped", PER_PORT, Value::Null),            refused(NO_PER_PORT)),
            row(Admin,   does("writes a result"),                note("plain", ANNOTATION, json!(RESULT)),         refused(WAY_OUT)),
            row(Admin,   does("changes a result"),               note("mapped", ANNOTATION, json!(other_result)),  refused(WAY_OUT)),
            row(Admin,   does("writes a mark"),                  note("plain", MARK, json!("[]")),                 refused(NO_MARK)),
        ]);
    }
    let forged = annotations(&json!({ ANNOTATION: RESULT }));
    let replace = json!([{ "op": "replace", "path": "/metadata/annotations/tkestack.io~1portmapping", "value": RESULT }]);
    let add = json!([{ "op": "add", "path": "/metadata/annotations/tkestack.io~1portmapping-request", "value": "[]" }]);
    let conditions = |status: &str| json!({ "status": { "conditions": [condition(status, "Mapped")] } });
    let remove = json!({ "status": { "conditions": [{ "type": ANNOTATION, "$patch": "delete" }] } });
    let (plain, asked) = (At("open", "plain", ""), At("open", "asked", ""));
    let (plain_status, mapped_status) = (At("open", "plain", "status"), At("open", "mapped", "status"));
    rows.extend([
        row(User,      "writes a result by merge patch",             plain.merge(forged.clone()),                         refused(WAY_OUT)),
        row(User,      "writes a result by JSON patch",              asked.json_patch(replace.clone()),                   refused(WAY_OUT)),
        row(User,      "writes a mark by JSON patch",                asked.json_patch(add),                               refused(NO_MARK)),
        row(User,      "writes a result by PUT",                     put(session, asked, &forged)?,                       refused(WAY_OUT)),
        row(Admin,     "writes a result by PUT",                     put(session, asked, &forged)?,                       refused(WAY_OUT)),
        row(Admin,     "writes a result by PUT of pods/status",      put(session, At("open", "asked", "status"), &forged)?, not_through_status()),
        row(User,      "writes a result by server-side apply",       plain.apply("x", forged.clone()),                    refused(WAY_OUT)),
        row(User,      "writes a result by apply on pods/status",    plain_status.apply("x", forged.clone()),             not_through_status()),
        row(User,      "writes a result as a dry run",               dry(plain.patch(forged.clone())),                    refused(WAY_OUT)),
        row(Kubelet,   "writes a result",                            plain_status.patch(forged.clone()),                  not_through_status()),
        row(Kubelet,   "writes a mark",                              plain_status.note(MARK, "[]"),                       not_through_status()),
        row(Kubelet,   "sets our condition",                         plain_status.patch(conditions("True")),              not_through_status()),
        row(User,      "sets our condition",                         plain_status.patch(conditions("True")),              not_through_status()),
        row(Admin,     "sets our condition",                         plain_status.patch(conditions("True")),              not_through_status()),
        row(Admin,     "changes our condition",                      mapped_status.patch(conditions("False")),            not_through_status()),
        row(Admin,     "removes our condition",                      mapped_status.patch(remove),                         not_through_status()),
        // the API server copies a Binding's annotations into the pod, without any admission of pods
        row(User,      "binds with a result",                        bind(&json!({ ANNOTATION: RESULT })),                refused(WAY_OUT)),
        row(User,      "binds with a mark",                          bind(&json!({ MARK: "[]" })),                        refused(NO_MARK)),
        row(User,      "binds with a per-port annotation",           bind(&json!({ PER_PORT: "1" })),                     refused(NO_PER_PORT)),
        row(Scheduler, "binds with a result",                        bind(&json!({ ANNOTATION: RESULT })),                refused(WAY_OUT)),
        row(User,      "binds with a result in the old way",         old_bind(&json!({ ANNOTATION: RESULT })),            refused(WAY_OUT)),
        row(User,      "binds with a mark in the old way",           old_bind(&json!({ MARK: "[]" })),                    refused(NO_MARK)),
        row(User,      "binds without annotations",                  bind(&Value::Null),                                  Allowed),
        row(Scheduler, "binds without annotations",                  bind(&Value::Null),                                  Allowed),
        // the API server itself drops these
        row(User,      "writes a result through pods/ephemeralcontainers", At("open", "mapped", "ephemeralcontainers").patch(annotations(&json!({ ANNOTATION: other_result }))), NoEffect),
        row(User,      "writes a mark through pods/ephemeralcontainers",   At("open", "mapped", "ephemeralcontainers").patch(annotations(&json!({ MARK: "[]" }))),               NoEffect),
        row(User,      "writes a result through pods/resize",        At("open", "mapped", "resize").patch(annotations(&json!({ ANNOTATION: other_result }))),                    NoEffect),
        row(User,      "writes a mark through pods/resize",          At("open", "mapped", "resize").patch(annotations(&json!({ MARK: "[]" }))),                                  NoEffect),
    ]);
    Ok(rows)
}

/// The whole object, as it is, with other annotations.
fn put(session: &Session<'_>, at: At, changes: &Value) -> Result<Call> {
    let mut whole = session.done(Admin, &At(at.0, at.1, "").get())?;
    whole["metadata"]["annotations"] = changes["metadata"]["annotations"].clone();
    let path = at.path();
    Ok(Call {
        method: "PUT",
        path,
        ..post("", whole)
    })
}

fn dry(mut call: Call) -> Call {
    call.path.push_str("?dryRun=All");
    call
}

fn binding(annotations: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Binding", "target": { "kind": "Node", "name": "node1" },
        "metadata": { "name": "unscheduled", "annotations": annotations } })
}

fn bind(annotations: &Value) -> Call {
    At("open", "unscheduled", "binding").post(binding(annotations))
}

fn old_bind(annotations: &Value) -> Call {
    post("/api/v1/namespaces/open/bindings", binding(annotations))
}

#[test]
fn only_the_enforcer_writes_results_marks_and_conditions() -> Result<()> {
    on_both(|session| session.check(&rows(session)?))
}

#[test]
fn a_disguised_result_is_not_accepted_as_a_request() -> Result<()> {
    on_both(|session| {
        let note = |value: &str| At("open", "plain", "").note(ANNOTATION, value);
        let short = |value: &str| value.chars().take(90).collect::<String>();
        let hostile = HOSTILE.iter().map(|value| (*value).to_owned());
        let refusals = hostile.chain(long()).map(|value| {
            let does = format!("writes {:?}", short(&value));
            row(User, does, note(&value), refused("tkestack.io/portmapping"))
        });
        let good = GOOD.iter().map(|value| (*value).to_owned());
        let requests = good.chain([crate::hostile::sixty_four()]).map(|value| {
            let does = format!("asks with {:?}", short(&value));
            row(User, does, note(&value), Allowed)
        });
        session.check(&refusals.chain(requests).collect::<Vec<_>>())
    })
}
