//! Asks the API server at the start whether this enforcer may publish results.
//!
//! The admission policies name the enforcer's account. Under any other account every publication is
//! refused, and without this question that would show only when the first pod asks.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use portmapping_runtime::deadline::chain;
use portmapping_runtime::{CallError, ReadyHandle, within};
use portmapping_shared::Backoff;
use portmapping_shared::contract::{CONDITION, ENFORCER_MANAGER, REASON_DATAPLANE_ERROR};
use serde_json::json;

use crate::pods::SlimPod;

/// Longest wait for the API server's answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Waits between two questions: an account that is named later is noticed soon.
const PAUSE: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
};

/// Waits until a dry run of a publication is permitted, makes the part ready, and never returns. Until
/// then the part says who refused it. The dry run sets our condition in the status of the enforcer's own pod,
/// and needs no right that a publication does not need.
pub(crate) async fn wait_for_permission(client: Client, own_pod: &str, ready: ReadyHandle) {
    let pods: Api<SlimPod> = Api::namespaced(client.clone(), client.default_namespace());
    let params = PatchParams {
        dry_run: true,
        field_manager: Some(ENFORCER_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let condition =
        json!({ "type": CONDITION, "status": "False", "reason": REASON_DATAPLANE_ERROR });
    let body = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    let mut failures = 0;
    loop {
        let call = pods.patch_status(own_pod, &params, &body);
        let Err(error) = within(LIMIT, "PATCH pods/status (dry run)", call).await else {
            ready.ready();
            // a task that ends ends the program
            return std::future::pending().await;
        };
        let cause = chain(&error);
        ready.wait_for(if is_refusal(&error) {
            let account = own_account(&client).await;
            format!(
                "{account} may not publish results; policies and roles must name this account: {cause}"
            )
        } else {
            format!("cannot ask the API server whether results may be published: {cause}")
        });
        failures += 1;
        tokio::time::sleep(PAUSE.after(failures, 0.0)).await;
    }
}

/// Returns whether a policy or a role refused the call: 403, or 422 where a policy cannot be evaluated.
fn is_refusal(error: &CallError<kube::Error>) -> bool {
    matches!(error, CallError::Failed { source: kube::Error::Api(status), .. } if matches!(status.code, 403 | 422))
}

/// Returns the name under which the API server knows this enforcer.
async fn own_account(client: &Client) -> String {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let (params, question) = (PostParams::default(), SelfSubjectReview::default());
    let call = reviews.create(&params, &question);
    let review = within(LIMIT, "create selfsubjectreviews", call).await;
    let user = review
        .ok()
        .and_then(|review| review.status?.user_info?.username);
    user.unwrap_or_else(|| "the enforcer's account".to_owned())
}
