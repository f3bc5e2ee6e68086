//! The webhook's TLS identity: issue it, agree on it among replicas, have the API server trust it,
//! serve it.
//!
//! ```text
//! clock --> rotation::decide(what the Secret holds) --> Keep | IssueLeaf | RollCa
//!                                                            | issue::renew
//! Secret <== secret (compare-and-swap) ======================+
//!    |  manager, every period and after every surprise
//!    +--> bundle: caBundle of the MutatingWebhookConfiguration
//!    +--> resolver: what the next TLS handshake is answered with
//! ```
//!
//! Or [`files`]: somebody else issues and registers, and only serving is left to do.
//!
//! No HTTP server and no admission here, and no end of the program on an error of the API server:
//! what is being served stays served while the manager tries again.

pub mod bundle;
pub mod files;
pub mod issue;
pub mod manager;
pub mod material;
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
