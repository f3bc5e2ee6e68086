//! The webhook's TLS certificate: issue it, agree on it among replicas, make the API server trust it,
//! serve it.
//!
//! This crate owns the Secret with CA and certificate, the caBundle of the webhook's registration,
//! and the certificate that a TLS handshake gets.
//!
//! ```text
//!                    Secret <-- compare-and-swap -- issue::renew
//!                      | read                           ^
//!                      v                                | IssueLeaf, RollCa
//! clock ------> rotation::decide -----------------------+
//!                      | Keep
//!                      v
//! bundle:   caBundle of the MutatingWebhookConfiguration
//! resolver: the certificate of the next TLS handshake
//! ```
//!
//! [`CertManager`] runs all of this, once in each period. [`Files`] is the alternative: another
//! program (cert-manager) issues and registers, and only serving is left.
//!
//! It must not know HTTP, admission or pods. An error of the API server never ends the program: what
//! is served stays in use while the manager tries again.

pub mod bundle;
pub mod files;
pub mod issue;
pub mod manager;
mod material;
pub mod metrics;
pub mod resolver;
pub mod rotation;
pub mod secret;

#[cfg(test)]
mod tests;

pub use files::Files;
pub use manager::{CertManager, Config, Reports};
pub use material::{Lifetimes, Material, Names};
pub use metrics::Metrics;
pub use resolver::Resolver;
