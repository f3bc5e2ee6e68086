//! How much memory a list of large pods takes.

use std::convert::Infallible;
use std::process::Command;

use axum::body::Body as Answer;
use futures::stream;
use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

/// Set in the process that is measured: memory of other tests does not count there.
const MEASURED: &str = "PORTMAPPING_TEST_MEASURED";
const PODS: usize = 200;
/// As many one-byte annotations as a pod of 256 KiB can have.
const ANNOTATIONS: usize = 20_000;
/// As many ports as etcd takes with different numbers, and more.
const PORTS: usize = 14_000;
const LIMIT_KIB: u64 = 64 * 1024;

/// A failed pod whose user wrote as many annotations and ports as the API server takes.
fn large_pod(index: usize) -> Value {
    let keys = || (0..ANNOTATIONS).map(|key| format!("k{key}"));
    let annotations: serde_json::Map<_, _> = keys().map(|key| (key, json!("v"))).collect();
    let fields: serde_json::Map<_, _> = keys().map(|key| (format!("f:{key}"), json!({}))).collect();
    let ports = (1..=PORTS).map(|port| json!({ "containerPort": port, "protocol": "TCP" }));
    let containers: Vec<_> = ports
        .collect::<Vec<_>>()
        .chunks(3_500)
        .map(|ports| json!({ "name": "c", "ports": ports }))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": format!("p{index}"), "namespace": "ns", "uid": format!("uid-{index}"),
            "resourceVersion": "7",
            "annotations": annotations,
            "managedFields": [{
                "manager": "kubectl", "operation": "Update", "apiVersion": "v1",
                "time": "2026-11-20T00:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": { "f:metadata": { "f:annotations": fields } },
            }],
        },
        "spec": { "nodeName": "n1", "containers": containers },
        "status": { "phase": "Failed" },
    })
}

/// The answers of an API server with and without streaming lists.
fn answer(query: &str, streams: bool, pods: usize) -> Response<Answer> {
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid",
        "message": "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"});
    let (status, body) = if query.contains("sendInitialEvents=true") {
        if streams {
            let end = json!({ "type": "BOOKMARK", "object": { "apiVersion": "v1", "kind": "Pod", "metadata": {
                "resourceVersion": "8", "annotations": { "k8s.io/initial-events-end": "true" },
            } } });
            // made once, for speed; each line is a copy with a uid of its own
            let added = json!({ "type": "ADDED", "object": large_pod(0) }).to_string();
            let lines = (0..=pods).map(move |index| {
                Ok::<_, Infallible>(if index < pods {
                    added.replace("uid-0", &format!("uid-{index}")) + "\n"
                } else {
                    format!("{end}\n")
                })
            });
            (200, Answer::from_stream(stream::iter(lines)))
        } else {
            (422, Answer::from(refusal.to_string()))
        }
    } else if query.contains("watch=true") {
        (
            200,
            Answer::from_stream(stream::pending::<Result<String, Infallible>>()),
        )
    } else {
        // piece by piece too: the memory of the API server must not count
        let item = large_pod(0).to_string();
        let head =
            r#"{"apiVersion":"v1","kind":"PodList","metadata":{"resourceVersion":"8"},"items":["#;
        let pieces = (0..=pods).map(move |index| {
            let piece = match index {
                0 => head.to_owned() + &item,
                last if last == pods => "]}".to_owned(),
                _ => format!(",{}", item.replace("uid-0", &format!("uid-{index}"))),
            };
            Ok::<_, Infallible>(piece)
        });
        (200, Answer::from_stream(stream::iter(pieces)))
    };
    Response::builder().status(status).body(body).unwrap()
}

/// Lists the pods as the enforcer does; returns how many came before the list was complete.
async fn list(streams: bool, pods: usize) -> (usize, usize) {
    let service = tower::service_fn(move |request: Request<Body>| async move {
        let query = request.uri().query().unwrap_or_default();
        Ok::<_, Infallible>(answer(query, streams, pods))
    });
    let (sender, mut updates) = mpsc::channel(POD_QUEUE);
    let client = Client::new(service, "default");
    let watching = tokio::spawn(async move { watch(client, "n1", sender).await });
    let mut applied = 0;
    let listed = loop {
        match updates.recv().await.unwrap() {
            PodUpdate::Applied(_) => applied += 1,
            PodUpdate::Relisted(uids) => break uids.len(),
            PodUpdate::Gone(uid) => panic!("{uid} is not gone"),
        }
    };
    watching.abort();
    (applied, listed)
}

#[tokio::test]
async fn pods_are_listed_by_an_api_server_without_streaming_lists() {
    assert_eq!(list(false, 2).await, (2, 2));
}

#[tokio::test]
async fn two_hundred_pods_with_twenty_thousand_annotations_take_little_memory() {
    let name =
        "pods::memory_tests::two_hundred_pods_with_twenty_thousand_annotations_take_little_memory";
    stays_small(name, true).await;
}

#[tokio::test]
async fn so_many_pods_take_little_memory_without_streaming_lists() {
    let name = "pods::memory_tests::so_many_pods_take_little_memory_without_streaming_lists";
    stays_small(name, false).await;
}

/// Runs the test of this name again in a process of its own, which lists the pods.
async fn stays_small(name: &str, streams: bool) {
    if std::env::var_os(MEASURED).is_none() {
        let test = std::env::current_exe().unwrap();
        let measured = Command::new(test)
            .args(["--exact", name])
            .env(MEASURED, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&measured.stdout);
        assert!(
            measured.status.success() && told.contains("1 passed"),
            "{told}"
        );
        return;
    }
    assert_eq!(list(streams, PODS).await, (PODS, PODS));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(
        peak <= LIMIT_KIB,
        "{PODS} pods took {peak} KiB of memory at the peak"
    );
}
