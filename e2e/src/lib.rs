//! A real Kubernetes cluster on one machine, made of namespaces: two or more nodes with their own
//! kubelet, containerd and kube-proxy, a control plane, and a client outside the cluster, all on one
//! dual-stack fabric.
//!
//! It owns the programs and images that the cluster is built from, the clusters and their folders under
//! `target/e2e`, the demo, chaos, and the tables of what was tried.
//!
//! ```text
//! owner          root namespaces; everything ends when it ends
//! └ init         pid 1 of the cluster, only reaps
//!   └ super      fabric (bridge), etcd, API server, controllers, scheduler, relay to 127.0.0.1
//!     ├ init     pid 1 of node1, only reaps
//!     │ └ node   containerd, kubelet, kube-proxy
//!     ├ init     node2 ...
//!     └ client   a machine that is not part of the cluster
//! ```
//!
//! Tests use [`Cluster`]; people use the `e2e` program, which is the same code. It must not know the
//! product's types: it sees the product as its users do.

pub mod api;
pub mod artifacts;
pub mod chaos;
pub mod cli;
pub mod cluster;
pub mod compatibility;
pub mod conformance;
mod demo;
pub mod install;
pub mod kernels;
pub mod paths;
pub mod process;
pub mod progress;
pub mod starts;
pub mod versions;
pub mod visit;
pub mod wait;

pub use cluster::Cluster;
pub use cluster::config::{Config, Families, ProxyMode};
pub use versions::{CiliumMode, Cni, Containerd, Minor};
