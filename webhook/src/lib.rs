//! Admission of pods that ask for host ports.
//!
//! ```text
//! TCP --server (TLS, limits, drain)--> routes --bytes--> review --> pod --> mutate --> Verdict
//!                                                          ^                            |
//!                                                          +---- AdmissionReview <------+
//! ```
//!
//! An answer depends on the request alone: nothing is read from the cluster, nothing is remembered.
//! The only thing this program writes to the cluster is its own certificate (`portmapping-certs`).

pub mod app;
pub mod args;
mod body;
pub mod metrics;
pub mod mutate;
pub mod pod;
pub mod review;
pub mod routes;
pub mod server;

pub use args::{Args, Config};
