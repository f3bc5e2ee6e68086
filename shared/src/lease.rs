//! A pod's right to its host ports: a value without behaviour.

use std::net::IpAddr;

use crate::pod::PodUid;
use crate::port::{ContainerPort, HostPort, Protocol};

/// One host port granted to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeasedPort {
    /// Transport protocol of both ends.
    pub protocol: Protocol,
    /// Port on the node.
    pub host_port: HostPort,
    /// Port in the pod.
    pub container_port: ContainerPort,
    /// The only node address that answers; None for all of them.
    pub host_ip: Option<IpAddr>,
}

/// All host ports granted to one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortLease {
    /// The pod.
    pub uid: PodUid,
    /// Its ports; at most one per (protocol, container port).
    pub ports: Vec<LeasedPort>,
}
