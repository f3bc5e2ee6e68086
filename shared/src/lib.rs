//! The words every room of portmapping speaks: the contract's strings, ports, requests, leases,
//! mappings and the published annotation.
//!
//! Values in, values out. This crate knows no clock, no file, no log, no async runtime and no
//! Kubernetes client, so that webhook and enforcer judge a pod by the very same code.
//!
//! ```text
//! annotation --annotation::classify--> Ask + PodSpec --> PortRequest --(enforcer)--> LeasedPort
//!                                                                           + pod IP --> Mapping
//!                                                         annotation::encode <-- result entries
//! ```

pub mod annotation;
pub mod ask;
pub mod backoff;
pub mod contract;
pub mod mapping;
pub mod plan;
pub mod pod;
pub mod port;
pub mod request;

pub use annotation::ResultEntry;
pub use ask::{InvalidRequest, quoted};
pub use backoff::Backoff;
pub use mapping::{LeasedPort, Mapping};
pub use plan::Plan;
pub use pod::{PodRef, PodSpec, PodUid, null_as_default};
pub use port::{ContainerPort, HostPort, PortRange, PortSet, Protocol};
pub use request::{PortRequest, RequestedPort};
