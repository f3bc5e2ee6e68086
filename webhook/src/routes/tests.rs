use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use portmapping_runtime::conns::Peer;
use portmapping_runtime::metrics as text;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{Limits, PEER_RESPONSES, Service, router};
use crate::body::Bodies;
use crate::budget::Budget;
use crate::metrics::Metrics;

const LIMITS: Limits = Limits {
    body_bytes: 10_000,
    deadline: Duration::from_millis(50),
    max_ports: 64,
};

fn review(annotation: &str) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u",
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "operation": "CREATE",
            "object": {
                "metadata": { "annotations": { "tkestack.io/portmapping": annotation } },
                "spec": { "containers": [{ "ports": [{ "containerPort": 80 }] }] },
            },
        },
    })
}

async fn send(metrics: &Metrics, request: Request<Body>) -> (StatusCode, String) {
    let response = router(LIMITS, metrics.clone())
        .oneshot(request)
        .await
        .unwrap();
    read(response).await
}

async fn read(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn post(body: impl Into<Body>) -> (StatusCode, String) {
    let request = Request::post("/mutate").body(body.into()).unwrap();
    send(&Metrics::default(), request).await
}

#[tokio::test]
async fn answers_a_review_as_json() {
    let request = Request::post("/mutate?timeout=5s")
        .body(Body::from(review("").to_string()))
        .unwrap();
    let response = router(LIMITS, Metrics::default())
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let (status, body) = read(response).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &body["response"]["allowed"]),
        (StatusCode::OK, &json!(true))
    );
}

#[tokio::test]
async fn a_denial_is_a_review_with_status_200() {
    let (status, body) = post(review("nonsense").to_string()).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &body["response"]["allowed"]),
        (StatusCode::OK, &json!(false))
    );
    assert_eq!(body["response"]["uid"], "u");
}

#[tokio::test]
async fn a_body_that_is_not_a_review_is_a_client_error_with_a_reason() {
    for body in ["", "{", "{}", "[1]", "\u{0}"] {
        let (status, text) = post(body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(text.contains("AdmissionReview"), "{text}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let (status, text) = post("x".repeat(10_001)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(text, "the body is longer than 10000 bytes\n");
}

#[tokio::test]
async fn a_body_that_never_arrives_is_refused_at_the_deadline() {
    let nothing = http_body_util::StreamBody::new(futures::stream::pending::<
        Result<hyper::body::Frame<axum::body::Bytes>, std::convert::Infallible>,
    >());
    let (status, _) = post(Body::new(nothing)).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let metrics = Metrics::default();
    let get = Request::get("/mutate").body(Body::empty()).unwrap();
    assert_eq!(send(&metrics, get).await.0, StatusCode::METHOD_NOT_ALLOWED);
    for path in ["/", "/metrics", "/readyz", "/mutate/x", "/MUTATE"] {
        let request = Request::post(path).body(Body::empty()).unwrap();
        assert_eq!(
            send(&metrics, request).await.0,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn counts_reviews_by_outcome_and_measures_their_time() {
    let metrics = Metrics::default();
    for body in [
        review("").to_string(),
        review("x").to_string(),
        "{".to_owned(),
    ] {
        send(
            &metrics,
            Request::post("/mutate").body(body.into()).unwrap(),
        )
        .await;
    }
    let mut registry = text::registry();
    metrics.register(&mut registry);
    let text = text::encode(&registry).unwrap();
    for line in [
        r#"portmapping_reviews_total{outcome="PortsRequested"} 1"#,
        r#"portmapping_reviews_total{outcome="Denied"} 1"#,
        r#"portmapping_reviews_total{outcome="Malformed"} 1"#,
        "portmapping_review_duration_seconds_count 3",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn responses_that_a_client_does_not_take_have_a_budget() {
    let limits = Limits {
        body_bytes: 3_000_000,
        ..LIMITS
    };
    let router = router(limits, Metrics::default());
    let mut large = review("");
    let keys = (0..1000).map(|n| {
        (
            format!("host-port.tkestack.io/{n}{}", "~".repeat(300)),
            json!(""),
        )
    });
    large["request"]["object"]["metadata"]["annotations"]
        .as_object_mut()
        .unwrap()
        .extend(keys);
    let ask = |review: &Value, last: u8| {
        let mut request = Request::post("/mutate")
            .body(Body::from(review.to_string()))
            .unwrap();
        let peer = Peer::from(std::net::IpAddr::from([10, 0, 0, last]));
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    };
    let first = ask(&large, 1).await.unwrap();
    let second = ask(&large, 1).await.unwrap();
    assert_eq!(first.status(), StatusCode::OK);
    assert_eq!(second.status(), StatusCode::REQUEST_TIMEOUT);
    let usual = ask(&review(""), 1).await.unwrap();
    assert_eq!(usual.status(), StatusCode::OK, "a short response");
    let other = ask(&large, 2).await.unwrap();
    assert_eq!(other.status(), StatusCode::OK, "another client's");
    let (_status, text) = read(first).await;
    assert!(text.len() > 500_000, "{}", text.len());
    let again = ask(&large, 1).await.unwrap();
    assert_eq!(again.status(), StatusCode::OK, "the first was taken");
}

/// What the program logs in its default format while `act` runs.
fn logged(act: impl FnOnce()) -> String {
    let (mut log, writer) = std::io::pipe().unwrap();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(Arc::new(writer))
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_denial_is_logged_with_names_quoted_once() {
    let mut body = review("yes");
    body["request"]["namespace"] = json!("games");
    body["request"]["object"]["metadata"]["name"] = json!("hello\n0");
    let review = crate::review::parse(body.to_string().as_bytes()).unwrap();
    let service = Service {
        limits: LIMITS,
        bodies: Bodies::new(LIMITS.body_bytes),
        responses: Budget::new(PEER_RESPONSES, 1),
        metrics: Metrics::default(),
    };
    let line = logged(|| drop(service.judge(&review)));
    let line: Value = serde_json::from_str(&line).expect("one line of JSON");
    assert_eq!(line["message"], "pod denied");
    assert_eq!(
        (&line["uid"], &line["namespace"]),
        (&json!("u"), &json!("games"))
    );
    assert_eq!(line["name"], "hello\n0");
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("tkestack.io/portmapping: 'yes' is"),
        "{reason}"
    );
}
