//! What is asked for, and what is kept.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use kube::client::{Body, Client};
use parking_lot::Mutex;
use serde_json::json;

use super::*;

#[tokio::test]
async fn lists_page_by_page_and_keeps_what_is_needed() {
    let queries = Arc::new(Mutex::new(Vec::new()));
    let asked = Arc::clone(&queries);
    let service = tower::service_fn(move |request: Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let next = if query.contains("continue=more") {
            ""
        } else {
            "more"
        };
        asked.lock().push(query);
        let node = json!({
            "metadata": { "name": "a", "labels": { "l": "v" } },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }], "images": [{ "names": ["i"] }] },
        });
        let page = json!({
            "apiVersion": "v1", "kind": "NodeList", "metadata": { "continue": next }, "items": [node],
        });
        let reply = Response::new(axum::body::Body::from(page.to_string()));
        async move { Ok::<_, Infallible>(reply) }
    });
    let nodes: Api<Node> = Api::all(Client::new(service, "default"));
    let params = ListParams::default().fields("reason=FailedCreate");
    let all = list(&nodes, params, slim_node).await.unwrap();
    let slim: Node = serde_json::from_value(json!({
        "metadata": { "name": "a" },
        "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
    }))
    .unwrap();
    assert_eq!(all, [slim.clone(), slim]);
    let queries = queries.lock();
    assert_eq!(queries.len(), 2);
    for query in queries.iter() {
        assert!(
            query.contains("limit=500") && query.contains("FailedCreate"),
            "{query}"
        );
    }
}
