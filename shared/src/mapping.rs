//! A host port that a pod has, and its translation to the pod's endpoint.

use std::fmt;
use std::net::IpAddr;

use crate::pod::PodUid;
use crate::port::{ContainerPort, HostPort, Protocol};

/// One host port of a pod's lease.
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

/// A translation (DNAT) with its owner: numbers and addresses only, never text from an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the node.
    pub host_port: HostPort,
    /// The only node address that is translated, of the same family as `pod_ip`; None for all.
    pub host_ip: Option<IpAddr>,
    /// Address of the pod.
    pub pod_ip: IpAddr,
    /// Port in the pod.
    pub container_port: ContainerPort,
    /// The pod that owns the host port.
    pub owner: PodUid,
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host_ip) = self.host_ip {
            write!(f, "{host_ip} ")?;
        }
        let Self {
            protocol,
            host_port,
            pod_ip,
            container_port,
            owner,
            ..
        } = self;
        write!(
            f,
            "{host_port}/{protocol} -> {pod_ip} {container_port} of pod {owner}"
        )
    }
}
