//! What the webhook's account may change: the caBundle of its own registration.

use anyhow::Result;
use serde_json::{Value, json};

use crate::support::caller::Who::{Admin, MightyWebhook, Webhook};
use crate::support::caller::{Call, Form};
use crate::support::objects::{SYSTEM, post};
use crate::support::rows::Outcome::{self, Allowed, NoRight};
use crate::support::rows::{Policy, Row, row};
use crate::support::world::{REGISTRATIONS, Session, on_both};

const NAME: &str = "pods.portmapping.tkestack.io";
const SAID: &str = "the webhook may change nothing but the caBundle of its registration";

fn refused() -> Outcome {
    Outcome::Refused(Policy::Webhook, SAID)
}

fn send(method: &'static str, form: Form, path: String, body: Value) -> Call {
    Call {
        method,
        path,
        form,
        body,
    }
}

/// A strategic merge patch of the registration.
fn patch(body: Value) -> Call {
    send(
        "PATCH",
        Form::Strategic,
        format!("{REGISTRATIONS}/portmapping"),
        body,
    )
}

/// The same of its webhook.
fn entry(mut fields: Value) -> Call {
    fields["name"] = json!(NAME);
    patch(json!({ "webhooks": [fields] }))
}

#[rustfmt::skip] // a table is read by its columns
fn registration(session: &Session<'_>) -> Result<Vec<Row>> {
    let own = || format!("{REGISTRATIONS}/portmapping");
    let whole = session.done(Admin, &send("GET", Form::Json, own(), Value::Null))?;
    let bundle = session.authority()?;
    let json_patch = |body| send("PATCH", Form::JsonPatch, own(), body);
    let set_bundle = json!([{ "op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle }]);
    let to_url = json!([{ "op": "remove", "path": "/webhooks/0/clientConfig/service" },
        { "op": "add", "path": "/webhooks/0/clientConfig/url", "value": "https://evil.example.com" }]);
    let mut second = whole["webhooks"][0].clone();
    second["name"] = json!("evil.portmapping.tkestack.io");
    let mut other = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": "evil" }, "webhooks": whole["webhooks"] });
    other["webhooks"][0]["rules"] = json!([{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"] }]);
    let everything = json!([{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"] }]);
    let one = |path: String, method| send(method, Form::Json, path, Value::Null);
    Ok(vec![
        row(Webhook, "sets the caBundle",                    entry(json!({ "clientConfig": { "caBundle": bundle } })), Allowed),
        row(Webhook, "sets the caBundle by JSON patch",      json_patch(set_bundle),                                   Allowed),
        row(Webhook, "widens the rules",                     entry(json!({ "rules": everything })),                    refused()),
        row(Webhook, "changes failurePolicy",                entry(json!({ "failurePolicy": "Ignore" })),              refused()),
        row(Webhook, "changes timeoutSeconds",               entry(json!({ "timeoutSeconds": 30 })),                   refused()),
        row(Webhook, "points it at another service",         entry(json!({ "clientConfig": { "service": { "name": "evil", "namespace": SYSTEM } } })), refused()),
        row(Webhook, "points it at another path",            entry(json!({ "clientConfig": { "service": { "name": "webhook", "namespace": SYSTEM, "path": "/x" } } })), refused()),
        row(Webhook, "points it at a URL",                   json_patch(to_url),                                       refused()),
        row(Webhook, "adds a webhook",                       patch(json!({ "webhooks": [second] })),                   refused()),
        row(Webhook, "removes its webhook",                  json_patch(json!([{ "op": "remove", "path": "/webhooks/0" }])), refused()),
        row(Webhook, "narrows its namespaces",               entry(json!({ "namespaceSelector": { "matchLabels": { "a": "b" } } })), refused()),
        row(Webhook, "adds a match condition",               entry(json!({ "matchConditions": [{ "name": "x", "expression": "true" }] })), refused()),
        row(Webhook, "adds a label",                         patch(json!({ "metadata": { "labels": { "a": "b" } } })), refused()),
        row(Webhook, "adds a finalizer",                     patch(json!({ "metadata": { "finalizers": ["a.b/c"] } })), refused()),
        row(Webhook, "replaces its registration",            send("PUT", Form::Json, own(), whole),                    NoRight),
        row(Webhook, "creates another registration",         post(REGISTRATIONS, other.clone()),                       NoRight),
        row(Webhook, "deletes its registration",             one(own(), "DELETE"),                                     NoRight),
        row(Webhook, "lists registrations",                  one(REGISTRATIONS.into(), "GET"),                         NoRight),
        row(Webhook, "watches all registrations",            one(format!("{REGISTRATIONS}?watch=true"), "GET"),        NoRight),
        row(Webhook, "watches another registration",         one(format!("{REGISTRATIONS}?watch=true&fieldSelector=metadata.name%3Devil"), "GET"), NoRight),
        row(MightyWebhook, "creates another registration",   post(REGISTRATIONS, other),                               refused()),
        row(MightyWebhook, "deletes its registration",       one(own(), "DELETE"),                                     refused()),
        row(Admin,   "adds a label",                         patch(json!({ "metadata": { "labels": { "a": "b" } } })), Allowed),
        row(Admin,   "changes timeoutSeconds",               entry(json!({ "timeoutSeconds": 30 })),                   Allowed),
    ])
}

#[rustfmt::skip] // a table is read by its columns
fn secrets() -> Vec<Row> {
    let secrets = format!("/api/v1/namespaces/{SYSTEM}/secrets");
    let other = format!("{secrets}/other");
    let apply = |name: &str| {
        let body = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "data": { "a": "YQ==" } });
        send("PATCH", Form::Apply, format!("{secrets}/{name}?fieldManager=w&force=true"), body)
    };
    let one = |method, path: &str| send(method, Form::Json, path.to_owned(), Value::Null);
    let body = |name: &str| json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name } });
    vec![
        row(Webhook, "creates its Secret by apply",          apply("portmapping-webhook-tls"),                         Allowed),
        row(Webhook, "creates another Secret by apply",      apply("other"),                                           NoRight),
        row(Webhook, "creates a Secret by POST",             post(&secrets, body("portmapping-webhook-tls")),          NoRight),
        row(Webhook, "reads another Secret",                 one("GET", &other),                                       NoRight),
        row(Webhook, "reads its Secret in another namespace", one("GET", "/api/v1/namespaces/default/secrets/portmapping-webhook-tls"), NoRight),
        row(Webhook, "changes another Secret",               send("PATCH", Form::Merge, other.clone(), json!({ "data": {} })), NoRight),
        row(Webhook, "deletes its Secret",                   one("DELETE", &format!("{secrets}/portmapping-webhook-tls")), NoRight),
        row(Webhook, "lists Secrets",                        one("GET", &secrets),                                     NoRight),
        row(Webhook, "lists pods",                           one("GET", "/api/v1/pods"),                               NoRight),
    ]
}

#[test]
fn the_webhook_changes_the_bundle_of_its_registration_and_nothing_else() -> Result<()> {
    on_both(|session| session.check(&registration(session)?))
}

#[test]
fn the_webhook_has_one_secret() -> Result<()> {
    on_both(|session| session.check(&secrets()))
}
