//! Carries mappings (host port to pod) in the kernel, and reads back what is there.
//!
//! It owns every rule, chain and table of ours, the conntrack entries of mapped ports, and the moves
//! between backends. It does not decide which port a pod gets or when: it is told by a [`Plan`]. It
//! must not know the API server, the ports' states, or who holds sockets; Cargo.toml enforces that.
//!
//! ```text
//!             Plan |                              ^ Observed
//!                  v                              |
//!  BackendMigration: moves mappings from other backends, finds bridges, keeps FORWARD open
//!                  |                              ^
//!          one of  v                              |  read at the start: Snapshot
//!    Iptables (nft or legacy)   or   Nftables     |  later: only if something changed
//!        | iptables-restore           | netlink   |
//!        v                            v           |
//!    table nat                    table inet portmapping --- ChangeMonitor: another program's commit
//!                                                            is a hint to read
//! ```
//!
//! A driver knows its own rules by their names and comments, and touches no others. The comment of a
//! rule or element names the pod that owns the mapping, so that the kernel is all that a restarted
//! enforcer needs to know them.

use std::collections::BTreeSet;

use portmapping_shared::{Mapping, Plan};

mod bridges;
pub mod change_monitor;
mod conntrack;
pub mod detect;
mod error;
mod exec;
mod family;
mod forward;
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
    /// Whether the frame around them (chains and jumps) is as it should be.
    pub intact: bool,
}

impl Observed {
    /// Adds what was found in another table.
    fn add(&mut self, other: Self) {
        self.mappings.extend(other.mappings);
        self.intact &= other.intact;
    }
}

/// A packet filter that can carry mappings. Calls block as long as the kernel needs; each outside
/// program has a time limit.
pub trait Dataplane: Send {
    /// Name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Returns our mappings in the kernel, without a read where the kernel tells that nothing has
    /// changed since the last one. The next [`Dataplane::apply`] starts from them.
    fn observe(&mut self) -> Result<Observed, DataplaneError>;

    /// Repairs the frame and carries the plan out, one transaction per address family. Afterwards
    /// all of it is in the kernel, or (on error) the family is as it was.
    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError>;

    /// Masquerades connections between pods of one of these subnets, from the next change on.
    fn set_neighbours(&mut self, neighbours: &[Subnet]);

    /// Whether IPv6 mappings can be made.
    fn has_ipv6(&self) -> bool;

    /// The monitor to which the driver reports its changes and reads, so that changes by other programs
    /// can be told from them.
    fn changes(&self) -> ChangeMonitor;

    /// How often conntrack entries of changed mappings could not be cleared so far.
    fn clear_failures(&self) -> u64;

    /// Removes everything of ours that this driver makes, and continues after failures.
    fn uninstall(&mut self) -> Result<(), DataplaneError>;
}
