//! The calls that really go to the API server, answered by a script.

use serde_json::{Value, json};

use super::{SecretStore, Store, StoreError, Swap};
use crate::material::Material;
use crate::tests::{Call, Script};

const PATH: &str = "/api/v1/namespaces/ns/secrets/tls";

fn store(script: &Script) -> SecretStore {
    SecretStore::new(script.client(), "ns", "tls")
}

fn secret(data: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "tls", "resourceVersion": "7" },
        "data": data,
    })
}

#[tokio::test]
async fn reads_what_is_there_and_takes_missing_or_odd_parts_for_empty() {
    // "aGk=" is "hi", "/w==" is no UTF-8
    let script = Script::new([(200, secret(&json!({ "tls.crt": "aGk=", "ca.crt": "/w==" })))]);
    let stored = store(&script).read().await.unwrap().unwrap();
    assert_eq!(stored.version, "7");
    assert_eq!(
        stored.material,
        Material {
            leaf: "hi".to_owned(),
            ..Material::default()
        }
    );
    assert_eq!(script.calls(), [Call::new("GET", PATH, "", Value::Null)]);
}

#[tokio::test]
async fn no_secret_is_no_error_and_a_refusal_is() {
    let script = Script::new([Script::status(404), Script::status(403)]);
    assert!(store(&script).read().await.unwrap().is_none());
    let error = store(&script).read().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Read { name, .. } if name == "ns/tls"),
        "{error}"
    );
}

#[tokio::test]
async fn creates_by_an_apply_without_data() {
    let script = Script::new([(201, secret(&Value::Null))]);
    assert_eq!(
        store(&script).create().await.unwrap().material,
        Material::default()
    );
    let call = &script.calls()[0];
    assert_eq!((call.method.as_str(), call.path.as_str()), ("PATCH", PATH));
    assert_eq!(call.content_type, "application/apply-patch+yaml");
    assert!(
        call.query.contains("fieldManager=portmapping-webhook"),
        "{}",
        call.query
    );
    assert!(call.query.contains("force=true"), "{}", call.query);
    assert_eq!(
        call.body["data"],
        Value::Null,
        "an apply that owns data could take it away"
    );
}

#[tokio::test]
async fn replaces_only_the_version_it_saw() {
    let script = Script::new([
        (200, secret(&json!({}))),
        Script::status(409),
        Script::status(404),
    ]);
    let store = store(&script);
    let material = Material {
        ca_key: "hi".to_owned(),
        ..Material::default()
    };
    assert_eq!(store.replace("7", &material).await.unwrap(), Swap::Done);
    assert_eq!(store.replace("7", &material).await.unwrap(), Swap::Conflict);
    assert_eq!(store.replace("7", &material).await.unwrap(), Swap::Conflict);
    let call = &script.calls()[0];
    assert_eq!(call.content_type, "application/merge-patch+json");
    let expected = json!({
        "metadata": { "resourceVersion": "7" },
        "data": { "ca.crt": "", "ca.key": "aGk=", "tls.crt": "", "tls.key": "" },
    });
    assert_eq!(call.body, expected);
}
