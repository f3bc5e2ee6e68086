//! The kernel's side of a mapping: drivers do what a [`Plan`] says and read back what is there.
//!
//! A driver never decides which port or when; it knows its own rules by their comment, and no
//! others.

use std::collections::BTreeSet;

use portmapping_shared::{Mapping, Plan};

mod bridges;
pub mod change_monitor;
pub mod conntrack;
pub mod detect;
mod error;
mod exec;
mod family;
pub mod forward;
pub mod iptables;
pub mod migration;
pub mod netlink;
pub mod nftables;
mod settings;
pub mod snapshot;
mod uninstall;

use change_monitor::ChangeMonitor;
pub use error::DataplaneError;
pub use exec::{ExecError, Tools};
pub use family::Family;
pub use settings::{InvalidSubnet, Settings, Subnet};
pub use uninstall::uninstall;

/// What a driver found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our mappings, as the rules have them.
    pub mappings: BTreeSet<Mapping>,
    /// Whether the frame around them (base chains, jumps, range tree) is whole.
    pub intact: bool,
}

impl Observed {
    /// Adds what was found in another table.
    fn add(&mut self, other: Self) {
        self.mappings.extend(other.mappings);
        self.intact &= other.intact;
    }
}

/// A packet filter that can carry mappings. Calls block for as long as the kernel takes; each
/// outside process has a deadline.
pub trait Dataplane: Send {
    /// Name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Reads our mappings back. The next [`Dataplane::apply`] builds on what this saw.
    fn observe(&mut self) -> Result<Observed, DataplaneError>;

    /// Makes the frame whole and carries the plan out, one transaction per address family:
    /// all of it is in the kernel afterwards, or (on error) the family is as it was.
    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError>;

    /// From the next call on, connections between pods of one of these subnets are masqueraded.
    fn set_neighbours(&mut self, neighbours: &[Subnet]);

    /// Whether IPv6 mappings can be made.
    fn has_ipv6(&self) -> bool;

    /// Where the driver reports its changes and looks, so that those of others are told from them.
    fn changes(&self) -> ChangeMonitor;

    /// How often stale flows of changed mappings could not be cleared so far.
    fn clear_failures(&self) -> u64;

    /// Removes every trace of ours, going on past failures.
    fn uninstall(&mut self) -> Result<(), DataplaneError>;
}
