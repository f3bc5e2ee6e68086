//! The kernel's side of a mapping: drivers do what a [`Plan`] says and read back what is there.
//!
//! A driver never decides which port or when; it knows its own rules by their comment, and no
//! others.

use std::collections::BTreeSet;

use portmapping_shared::{Mapping, Plan};

mod bridges;
pub mod conntrack;
pub mod detect;
mod error;
mod exec;
pub mod forward;
pub mod generation;
pub mod glimpse;
pub mod iptables;
mod look;
pub mod moving;
pub mod netlink;
pub mod nftables;
mod preparations;

pub use error::DataplaneError;
pub use exec::{ExecError, Tools};
use generation::Drift;
use iptables::Subnet;
pub use look::Look;
pub use preparations::Preparations;

/// What a driver found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our mappings, as the rules have them.
    pub mappings: BTreeSet<Mapping>,
    /// Whether the frame around them (base chains, jumps, range tree) is whole.
    pub intact: bool,
}

/// A packet filter that can carry mappings. Calls block for as long as the kernel takes; each
/// outside process has a deadline.
pub trait Dataplane: Send {
    /// Name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Reads our mappings back. The next [`Dataplane::apply`] builds on what this saw.
    fn observe(&mut self) -> Result<Observed, DataplaneError>;

    /// Begins an [`Dataplane::observe`] that no change has to wait for: what it returns is read
    /// without the driver, and taken in by [`Dataplane::looked`]. A driver that reads quickly reads
    /// nothing before that.
    fn look(&mut self) -> Look {
        Look::default()
    }

    /// Ends it. None: rules were changed meanwhile, and what was read says nothing.
    fn looked(&mut self, look: Look) -> Result<Option<Observed>, DataplaneError> {
        let Look { .. } = look;
        self.observe().map(Some)
    }

    /// Makes the frame whole and carries the plan out, one transaction per address family:
    /// all of it is in the kernel afterwards, or (on error) the family is as it was.
    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError>;

    /// From the next call on, connections between pods of one of these subnets are masqueraded.
    fn set_neighbours(&mut self, neighbours: &[Subnet]);

    /// What can be done before a change is known, so that it takes less time then. It is done
    /// without the driver, which needs not wait for it.
    fn preparations(&self) -> Preparations {
        Preparations::default()
    }

    /// Whether IPv6 mappings can be made.
    fn has_ipv6(&self) -> bool;

    /// Where the driver reports its changes and looks, so that those of others are told from them.
    fn drift(&self) -> Drift;

    /// How often stale flows of changed mappings could not be cleared so far.
    fn clear_failures(&self) -> u64 {
        0
    }

    /// Removes every trace of ours, going on past failures.
    fn uninstall(&mut self) -> Result<(), DataplaneError>;
}
