//! What every long-running program of portmapping needs and none should write twice: log, health
//! and metrics, readiness, shutdown, a Kubernetes client that cannot hang.
//!
//! ```text
//! Readiness handles --+
//! Registry -----------+--> admin::router --> admin::serve (TCP or unix socket) <-- admin::probe
//! extra routes -------+
//! signals --> Supervisor --> CancellationToken --> every task
//! ```
//!
//! It knows nothing of pods, ports or certificates.

pub mod admin;
pub mod client;
pub mod conns;
pub mod deadline;
pub mod flags;
pub mod log;
pub mod metrics;
pub mod ready;
pub mod supervisor;

pub use deadline::{CallError, within};
pub use ready::{Readiness, ReadyHandle};
pub use supervisor::Supervisor;
