//! `POST /mutate`: reads the body within its limits, judges the review, writes the response.

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{StatusCode, header};

use crate::body::{Bodies, BodyError};
use crate::budget::Budget;
use crate::metrics::Metrics;
use crate::mutate::{self, Verdict};
use crate::response::{InPieces, PIECE};
use crate::review::{self, Answer, Review, Subject};

/// Budget of one peer for longer responses that it has not taken yet, in bytes.
const PEER_RESPONSES: u32 = 1024 * 1024;
/// The same over all peers, in budgets of one peer.
const FULL_PEERS: usize = 16;

/// Limits of a review.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest body, in bytes.
    pub body_bytes: u32,
    /// From the header to the response. Shorter than the registration's timeoutSeconds, so that the
    /// API server can show this program's reason rather than its own timeout.
    pub deadline: Duration,
    /// Ports that one pod may ask for.
    pub max_ports: usize,
}

#[derive(Clone)]
struct Service {
    limits: Limits,
    bodies: Bodies,
    responses: Budget,
    metrics: Metrics,
}

/// The webhook's routes.
pub fn router(limits: Limits, metrics: Metrics) -> Router {
    Router::new()
        .route("/mutate", post(mutate))
        .with_state(Service {
            limits,
            bodies: Bodies::new(limits.body_bytes),
            responses: Budget::new(PEER_RESPONSES, FULL_PEERS),
            metrics,
        })
}

async fn mutate(State(service): State<Service>, request: Request) -> Response {
    let start = Instant::now();
    let limit = service.limits.deadline;
    let (outcome, response) = tokio::time::timeout(limit, service.review(request))
        .await
        .unwrap_or_else(|_elapsed| {
            let text = format!(
                "no answer within {limit:?}: the body of the review did not arrive, or clients that take no \
                 response use all memory for responses; try again"
            );
            refused("TimedOut", StatusCode::REQUEST_TIMEOUT, &text)
        });
    service.metrics.record_review(outcome, start.elapsed());
    response
}

/// A response without a review in it, and its outcome for the metrics.
fn refused(outcome: &'static str, status: StatusCode, text: &str) -> (&'static str, Response) {
    (outcome, (status, format!("{text}\n")).into_response())
}

impl Service {
    async fn review(&self, request: Request) -> (&'static str, Response) {
        let peer = request.extensions().get().copied().unwrap_or_default();
        let (mut parts, body) = request.into_parts();
        // its body is open until it was read
        let unread = parts.extensions.remove().unwrap_or_default();
        let (bytes, claim) = match self.bodies.read(peer, unread, body).await {
            Ok(received) => received,
            Err(error) => {
                let (outcome, status) = match error {
                    BodyError::TooLong(_) => ("TooLarge", StatusCode::PAYLOAD_TOO_LARGE),
                    BodyError::TooMany => ("Crowded", StatusCode::TOO_MANY_REQUESTS),
                    BodyError::Incomplete => ("Malformed", StatusCode::BAD_REQUEST),
                };
                return refused(outcome, status, &error.to_string());
            }
        };
        let review = match review::parse(&bytes) {
            Ok(review) => review,
            Err(malformed) => {
                tracing::info!(reason = %malformed, "malformed review refused");
                return refused("Malformed", StatusCode::BAD_REQUEST, &malformed.to_string());
            }
        };
        let (outcome, encoded) = self.judge(&review);
        match encoded {
            Ok(response) => {
                drop((bytes, claim));
                let mut claim = None;
                if response.len() > PIECE {
                    let length = u32::try_from(response.len()).unwrap_or(u32::MAX);
                    claim = Some(self.responses.claim(peer, length).await);
                }
                let body = Body::new(InPieces::new(response, claim));
                let json = [(header::CONTENT_TYPE, "application/json")];
                (outcome, (json, body).into_response())
            }
            Err(error) => {
                tracing::error!(%error, uid = review.uid, "cannot encode the response to a review");
                ("Failed", StatusCode::INTERNAL_SERVER_ERROR.into_response())
            }
        }
    }

    fn judge(&self, review: &Review) -> (&'static str, serde_json::Result<Vec<u8>>) {
        let verdict;
        let (outcome, answer) = match &review.subject {
            Subject::Unreadable(reason) => {
                tracing::info!(
                    uid = review.uid,
                    namespace = review.namespace,
                    reason,
                    "pod refused: it cannot be read"
                );
                ("Unreadable", Answer::Unreadable(reason))
            }
            Subject::Other => {
                verdict = Verdict::unchanged();
                ("NotAPod", Answer::Verdict(&verdict))
            }
            Subject::Pod(pod) => {
                verdict = mutate::judge(pod, self.limits.max_ports);
                let name = match pod.metadata.name.as_str() {
                    "" => &pod.metadata.generate_name,
                    name => name,
                };
                log(review, name, &verdict);
                let outcome = match &verdict {
                    Verdict::Allow { reason, .. } => reason.as_str(),
                    Verdict::Deny(_) => "Denied",
                };
                (outcome, Answer::Verdict(&verdict))
            }
        };
        (outcome, review::encode(&review.uid, &answer))
    }
}

/// Names are logged as strings, so that both log formats escape control characters in them (no log
/// line can be forged) and quote them once.
fn log(review: &Review, name: &str, verdict: &Verdict) {
    let (uid, namespace) = (review.uid.as_str(), review.namespace.as_str());
    let dry_run = review.dry_run;
    match verdict {
        Verdict::Allow { reason, patch, .. } => tracing::debug!(
            uid,
            namespace,
            name,
            dry_run,
            outcome = reason.as_str(),
            operations = patch.len(),
            "pod admitted"
        ),
        Verdict::Deny(invalid) => {
            tracing::info!(uid, namespace, name, dry_run, reason = %invalid, "pod denied");
        }
    }
}

#[cfg(test)]
mod tests;
