//! The trust model on real API servers, row by row: who does what, and what the answer is.
//!
//! Two clusters, the oldest and the newest Kubernetes supported here, each with the policies and the
//! roles of `manifests/base` and without the product: what is refused here is refused by the API
//! server alone. Every test runs on both; a failure names the version and each row that failed.

mod annotate_pods;
mod apply_twice;
mod change_registration;
mod create_pods;
mod forge_results;
mod hostile;
mod live_on;
mod many_annotations;
mod own_nodes_enforcer;
mod support;
mod warn_owners;
