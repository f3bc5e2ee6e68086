//! What every long-running program of portmapping needs: log, health and metrics, readiness, tasks
//! and signals, a Kubernetes client with time limits.
//!
//! This crate owns the start and the end of a program, its admin listener, the table of connections,
//! and the way to the API server. It must not know pods, ports, certificates of the webhook, or what
//! its programs do.
//!
//! ```text
//! Readiness handles --+
//! Registry -----------+--> admin::router --> admin::serve (TCP or unix socket) <-- admin::probe
//! extra routes -------+
//!
//! signals --------------+
//! a new CA (client) ----+--> CancellationToken --> every task --> Supervisor::run returns
//! a task that fails ----+
//!
//! service account --> client::ApiServer --> client for calls, client for watches --> list_watch
//! ```

pub mod admin;
pub mod client;
pub mod conns;
pub mod deadline;
pub mod flags;
pub mod list_watch;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod supervisor;

pub use deadline::{CallError, within};
pub use ready::{Readiness, ReadyHandle};
pub use supervisor::{EndSignals, Supervisor};
