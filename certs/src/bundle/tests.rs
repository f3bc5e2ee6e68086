//! The calls that really go to the API server, answered by a script.

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{ANY, Registered, RegisteredWebhook, Registration, WebhookRegistration};
use crate::secret::Swap;
use crate::tests::{Call, Script};

const PATH: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/portmapping";

fn registration(script: &Script) -> WebhookRegistration {
    WebhookRegistration::new(
        script.client(),
        script.client(),
        "portmapping",
        "webhook",
        "portmapping-system",
    )
}

fn webhook(name: &str, client_config: &Value) -> Value {
    json!({
        "name": name,
        "clientConfig": client_config,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    })
}

fn ours(ca_bundle: &str) -> Value {
    let service =
        json!({ "name": "webhook", "namespace": "portmapping-system", "path": "/mutate" });
    json!({ "service": service, "caBundle": ca_bundle })
}

fn configuration() -> Value {
    let foreign = json!({ "service": { "name": "webhook", "namespace": "elsewhere" } });
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": "portmapping", "resourceVersion": "7" },
        "webhooks": [
            webhook("a.tkestack.io", &ours("aGk=")),
            webhook("b.tkestack.io", &foreign),
            webhook("c.tkestack.io", &json!({ "url": "https://example.com/" })),
        ],
    })
}

#[tokio::test]
async fn reads_only_webhooks_that_call_our_service() {
    let script = Script::new([(200, configuration()), Script::status(404)]);
    let seen = registration(&script).read().await.unwrap().unwrap();
    assert_eq!(seen.version, "7");
    let webhook = RegisteredWebhook {
        name: "a.tkestack.io".to_owned(),
        ca_bundle: b"hi".to_vec(),
    };
    assert_eq!(seen.webhooks, [webhook]);
    assert!(seen.carries("hi") && !seen.carries("ho"));
    assert!(registration(&script).read().await.unwrap().is_none());
    assert_eq!(script.calls()[0], Call::new("GET", PATH, "", Value::Null));
}

#[tokio::test]
async fn patches_only_the_bundle_of_our_webhooks() {
    let script = Script::new([
        (200, configuration()),
        (200, configuration()),
        Script::status(409),
    ]);
    let registration = registration(&script);
    let seen = registration.read().await.unwrap().unwrap();
    assert_eq!(registration.write(&seen, "ho").await.unwrap(), Swap::Done);
    assert_eq!(
        registration.write(&seen, "ho").await.unwrap(),
        Swap::Conflict
    );
    let call = &script.calls()[1];
    assert_eq!((call.method.as_str(), call.path.as_str()), ("PATCH", PATH));
    assert_eq!(call.content_type, "application/strategic-merge-patch+json");
    assert!(
        call.query.contains("fieldManager=portmapping-webhook"),
        "{}",
        call.query
    );
    let expected = json!({
        "metadata": { "resourceVersion": "7" },
        "webhooks": [{ "name": "a.tkestack.io", "clientConfig": { "caBundle": "aG8=" } }],
    });
    assert_eq!(call.body, expected);
}

#[test]
fn without_a_webhook_of_ours_no_bundle_is_in_place() {
    let nothing = Registered {
        version: String::new(),
        webhooks: Vec::new(),
    };
    assert!(!nothing.carries(""));
}

#[tokio::test]
async fn watches_its_own_registration_from_the_last_version_that_it_received() {
    let event = |kind: &str, object: Value| (200, json!({ "type": kind, "object": object }));
    let (_code, gone) = Script::status(410);
    let script = Script::new([
        event("ADDED", configuration()),
        event("ERROR", gone),
        event("ADDED", configuration()),
    ]);
    let registration = registration(&script);
    let changed = Notify::new();
    let mut version = ANY.to_owned();
    registration
        .watch_once(&mut version, &changed)
        .await
        .unwrap();
    assert_eq!(version, "7");
    changed.notified().await;
    registration
        .watch_once(&mut version, &changed)
        .await
        .unwrap_err();
    assert_eq!(version, ANY, "what it missed is told first");
    registration
        .watch_once(&mut version, &changed)
        .await
        .unwrap();
    changed.notified().await;

    let calls = script.calls();
    let (all, _name) = PATH.rsplit_once('/').unwrap();
    let asked = |version| {
        let only = "fieldSelector=metadata.name%3Dportmapping";
        move |call: &Call| {
            let query = format!("&{}&", call.query);
            let from = format!("&resourceVersion={version}&");
            call.path == all
                && query.contains("watch=true")
                && query.contains(only)
                && query.contains(&from)
        }
    };
    assert!(
        asked("0")(&calls[0]) && asked("7")(&calls[1]) && asked("0")(&calls[2]),
        "{calls:?}"
    );
}
