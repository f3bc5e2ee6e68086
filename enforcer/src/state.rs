//! `/state`: pods, ports and counts as JSON, for a person who debugs a node.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use portmapping_dataplane::detect::Chosen;
use portmapping_enforcer_core::{AddressSource, Status};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::masquerade::Decision;
use crate::reconciler::StateRequest;

/// How long the reconciler may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Returns the route `/state`; requests go to the reconciler.
pub(crate) fn router(requests: mpsc::Sender<StateRequest>) -> Router {
    Router::new()
        .route("/state", get(state))
        .with_state(requests)
}

async fn state(State(requests): State<mpsc::Sender<StateRequest>>) -> impl IntoResponse {
    let (request, answer) = oneshot::channel();
    let status = async {
        requests.send(request).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ANSWER_LIMIT, status).await {
        Ok(Some((status, backend, masquerade))) => (
            [(CONTENT_TYPE, "application/json")],
            format!("{:#}\n", describe(&status, &backend, masquerade.as_ref())),
        )
            .into_response(),
        _ => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no answer within 5 s: another enforcer is on duty on this node (see /readyz), or the reconciler hangs\n",
        )
            .into_response(),
    }
}

fn describe(status: &Status, chosen: &Chosen, masquerade: Option<&Decision>) -> Value {
    let pods = status.pods.iter().map(|pod| {
        let lease = pod.lease.iter().map(|port| {
            json!({
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol,
                "hostIP": port.host_ip,
            })
        });
        json!({
            "uid": pod.uid,
            "pod": pod.name,
            "phase": pod.phase.as_str(),
            "addresses": pod.ips,
            "addressesFrom": match pod.source {
                AddressSource::Nowhere => None,
                AddressSource::Status => Some("status.podIPs"),
                AddressSource::Sandbox(_) => Some("sandbox"),
            },
            "sandbox": match &pod.source {
                AddressSource::Sandbox(id) => Some(id.as_str()),
                AddressSource::Nowhere | AddressSource::Status => None,
            },
            "ports": lease.collect::<Vec<_>>(),
            "refusal": pod.refusal,
        })
    });
    let counts = &status.counts;
    let free = counts
        .free
        .iter()
        .map(|(protocol, free)| (protocol.as_str().to_owned(), json!(free)));
    json!({
        "backend": chosen.backend.as_str(),
        "backendReason": chosen.reason,
        "masquerade": masquerade.map(|decision| decision.on),
        "masqueradeReason": masquerade.map(|decision| &decision.reason),
        "pods": pods.collect::<Vec<_>>(),
        "mappings": counts.mappings,
        "cooling": counts.cooling,
        "quarantined": counts.quarantined,
        "free": free.collect::<serde_json::Map<_, _>>(),
        "dataplaneError": counts.dataplane_error,
    })
}
