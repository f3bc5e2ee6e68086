//! `POST /mutate`: body limit, deadline, answer.

use std::time::{Duration, Instant};

use crate::body::{self, BodyError, Budget};
use crate::metrics::Metrics;
use crate::mutate::{self, Verdict};
use crate::review::{self, Answer, Review, Subject};
use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{StatusCode, header};

/// Limits of a review.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest body, in bytes.
    pub body_bytes: usize,
    /// From the header to the answer; below the registration's timeoutSeconds, so that whoever
    /// waits is told more than that nobody answered.
    pub deadline: Duration,
    /// Ports that one pod may ask for.
    pub max_ports: usize,
}

#[derive(Clone)]
struct Service {
    limits: Limits,
    budget: Budget,
    metrics: Metrics,
}

/// The webhook's routes.
pub fn router(limits: Limits, metrics: Metrics) -> Router {
    Router::new()
        .route("/mutate", post(mutate))
        .with_state(Service {
            limits,
            budget: Budget::new(limits.body_bytes),
            metrics,
        })
}

async fn mutate(State(service): State<Service>, request: Request) -> Response {
    let start = Instant::now();
    let answered = tokio::time::timeout(service.limits.deadline, service.answer(request)).await;
    let (outcome, response) = answered.unwrap_or_else(|_elapsed| {
        let text = "the review's body did not arrive in time\n";
        (
            "TimedOut",
            (StatusCode::REQUEST_TIMEOUT, text).into_response(),
        )
    });
    service.metrics.reviewed(outcome, start.elapsed());
    response
}

impl Service {
    async fn answer(&self, request: Request) -> (&'static str, Response) {
        let peer = request.extensions().get().copied().unwrap_or_default();
        let body = match body::collect(request.into_body(), peer, &self.budget).await {
            Ok(body) => body,
            Err(error @ BodyError::TooLong(_)) => {
                return (
                    "TooLarge",
                    (StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n")).into_response(),
                );
            }
            Err(error @ BodyError::Crowded) => {
                return (
                    "Crowded",
                    (StatusCode::TOO_MANY_REQUESTS, format!("{error}\n")).into_response(),
                );
            }
            Err(error @ BodyError::Broken) => {
                return (
                    "Malformed",
                    (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
                );
            }
        };
        match review::parse(body.bytes()) {
            Ok(review) => self.judge(&review),
            Err(malformed) => {
                tracing::info!(why = %malformed, "malformed review");
                (
                    "Malformed",
                    (StatusCode::BAD_REQUEST, format!("{malformed}\n")).into_response(),
                )
            }
        }
    }

    fn judge(&self, review: &Review) -> (&'static str, Response) {
        let verdict;
        let (outcome, answer) = match &review.subject {
            Subject::Unreadable(why) => {
                tracing::info!(
                    uid = review.uid,
                    namespace = review.namespace,
                    why,
                    "unreadable pod"
                );
                ("Unreadable", Answer::Unreadable(why))
            }
            Subject::Other => {
                verdict = Verdict::untouched();
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
        match review::encode(&review.uid, &answer) {
            Ok(bytes) => (
                outcome,
                ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
            ),
            Err(error) => {
                tracing::error!(%error, "cannot write an answer");
                ("Failed", StatusCode::INTERNAL_SERVER_ERROR.into_response())
            }
        }
    }
}

/// Debug formatting escapes whatever names carry, so that no line can be forged.
fn log(review: &Review, name: &str, verdict: &Verdict) {
    let Review {
        uid,
        namespace,
        dry_run,
        ..
    } = review;
    match verdict {
        Verdict::Allow { reason, patch, .. } => tracing::debug!(
            ?uid,
            ?namespace,
            ?name,
            dry_run,
            outcome = reason.as_str(),
            operations = patch.len(),
            "review"
        ),
        Verdict::Deny(invalid) => {
            tracing::info!(?uid, ?namespace, ?name, dry_run, why = %invalid, "denied");
        }
    }
}

#[cfg(test)]
mod tests;
