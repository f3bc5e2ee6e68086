//! The contract of portmapping: the strings, values and formats that all its programs share.
//!
//! This crate owns what a user may write into the annotation, how it is resolved against a pod's
//! spec, and the format of the published result. Webhook and enforcer use the same code, so they
//! decide alike about every pod.
//!
//! Pure: it must not know a clock, randomness, files, logs, an async runtime or a Kubernetes client.
//!
//! ```text
//! annotation --annotation::classify--> Ask --+
//!                                   PodSpec --+--> PortRequest --(enforcer)--> LeasedPort
//!                                                      |                           | + pod IP
//!                                                      v                           v
//!                                            request mark (to_mark)             Mapping --> Plan
//!                                                                                  |
//!                                       annotation <--annotation::encode-- ResultEntry
//! ```

pub mod annotation;
pub mod ask;
pub mod backoff;
pub mod contract;
pub mod mapping;
pub mod plan;
pub mod pod;
pub mod port;
pub mod remedy;
pub mod request;

pub use annotation::ResultEntry;
pub use ask::{InvalidRequest, quoted};
pub use backoff::Backoff;
pub use mapping::{LeasedPort, Mapping};
pub use plan::Plan;
pub use pod::{PodRef, PodSpec, PodUid, null_as_default};
pub use port::{ContainerPort, HostPort, PortKey, PortRange, PortSet, Protocol};
pub use remedy::remedy;
pub use request::{PortRequest, RequestedPort};
