//! The settings of a node's state machine.

use std::time::Duration;

use portmapping_shared::{PortRange, PortSet};

use crate::ports::RestLimits;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host ports to allocate from.
    pub range: PortRange,
    /// Ports of the range never to allocate.
    pub excluded: PortSet,
    /// How long a released port rests before any pod may have it.
    pub cooldown: Duration,
    /// How long a port that another process has is left alone.
    pub quarantine: Duration,
    /// Ports that one pod may have.
    pub max_ports: usize,
    /// A pod gets no new port while this many times the ports that it requests are cooling down.
    pub max_cooling: usize,
    /// The share of the range, in percent, of which the ports of one namespace may be cooling down, and
    /// which its pods may claim as static host ports.
    pub namespace_share: usize,
    /// Whether the dataplane can translate IPv6.
    pub ipv6: bool,
    /// The node's clock at the time 0 of this crate, since the Unix epoch: with it, what the API says
    /// is compared with the times at which the runtime wrote its results.
    pub epoch: Duration,
}

impl Config {
    /// The ports that one namespace may have at rest, of each protocol, and as static host ports.
    pub(crate) fn namespace_limit(&self) -> usize {
        // of a small range at least one
        (self.range.size() * self.namespace_share / 100).max(1)
    }

    /// How many ports may rest.
    pub(super) fn rest_limits(&self) -> RestLimits {
        RestLimits {
            pod: self.max_cooling,
            namespace: self.namespace_limit(),
        }
    }
}
