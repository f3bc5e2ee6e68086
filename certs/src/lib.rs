//! The webhook's TLS identity: issue it, agree on it among replicas, have the API server trust it,
//! serve it.
//!
//! ```text
//! clock --> rotation::decide(what the Secret holds) --> Keep | IssueLeaf | RollCa
//!                                                            | issue::renew
//! Secret <== secret (compare-and-swap) ======================+
//!    |  keeper, every period and after every surprise
//!    +--> bundle: caBundle of the MutatingWebhookConfiguration
//!    +--> resolver: what the next TLS handshake is answered with
//! ```
//!
//! Or [`files`]: somebody else issues and registers, and only serving is left to do.
//!
//! No HTTP server and no admission here, and no end of the program on an error of the API server:
//! what is being served stays served while the keeper tries again.

pub mod bundle;
pub mod files;
pub mod issue;
pub mod keeper;
pub mod metrics;
pub mod resolver;
pub mod rotation;
pub mod secret;

#[cfg(test)]
mod scripted;

pub use files::Files;
pub use issue::{Lifetimes, Material, Names};
pub use keeper::{Config, Keeper};
pub use metrics::Metrics;
pub use resolver::Resolver;
