//! The admission webhook: decides about pods that ask for host ports. It owns the answer to a review
//! (what is admitted, changed and refused), and the HTTPS server with its limits on connections, bytes
//! and time.
//!
//! ```text
//! TCP --> server (TLS, limits, drain) --> routes (body, deadline) --> review --> mutate
//!                                                                       |          |
//!         response <-- review (AdmissionReview) <-------- Verdict <----------------+
//! ```
//!
//! A response depends on the request alone: this crate must not read anything from the cluster for it,
//! or keep state between requests. It must not know nodes, host port numbers or the enforcer. All that
//! it writes to the cluster is its own certificate and caBundle, through `portmapping-certs`.

pub mod app;
pub mod args;
mod body;
mod budget;
pub mod metrics;
pub mod mutate;
pub mod pod;
mod response;
pub mod review;
pub mod routes;
pub mod server;
mod unread;

pub use args::{Args, Config};
