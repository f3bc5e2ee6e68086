//! Writes mappings (host port to pod) to the kernel as rules, and reads them back.
//!
//! It owns every rule, chain and table of ours, the conntrack entries of mapped ports, and the
//! migration between backends. It does not decide which port a pod gets or when; a [`Plan`] says
//! that. It must not know the API server, the states of ports, or which process holds sockets;
//! Cargo.toml enforces that.
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
//! A driver recognizes its own rules by their names and comments, and changes no others. The
//! rules of each pod name its uid in a comment: with iptables in the rule of the pod's address, with
//! nftables in each map element. So a restarted enforcer learns all mappings and their owners from
//! the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portmapping_shared::{Mapping, Plan, PortKey};

mod backend;
mod bridges;
pub mod change_monitor;
mod cilium;
mod conntrack;
pub mod detect;
mod error;
mod exec;
mod family;
mod flavour;
mod forward;
mod host_addresses;
pub mod iptables;
pub mod migration;
pub mod netlink;
pub mod nftables;
mod settings;
pub mod snapshot;
mod subnet;
mod system_error;
mod uninstall;

pub use backend::Backend;
use change_monitor::ChangeMonitor;
pub use conntrack::{StaleFlows, Unanswered};
pub use error::DataplaneError;
pub use exec::{ExecError, Tools};
pub use family::Family;
pub use flavour::Flavour;
pub use host_addresses::{AddressSelection, InvalidSelection, interface_addresses};
pub use settings::Settings;
pub use subnet::{InvalidSubnet, Subnet, subnet};
pub use uninstall::uninstall;

/// What a driver found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Our mappings, as read from the rules.
    pub mappings: BTreeSet<Mapping>,
    /// Whether the frame around them (chains and jumps) is as it should be.
    pub intact: bool,
    /// The host addresses at which the rules answer.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Whether another program puts its rules before our jumps each time, so that they stay behind from
    /// this read on.
    pub contested: bool,
    /// Chains that drop forwarded packets, and that no rule of ours can open.
    pub obstacles: Vec<Obstacle>,
    /// Why this kind of iptables cannot print FORWARD any more; None where it can, and with nftables.
    pub unprintable: Option<String>,
}

/// What keeps clients from mapped pods, or may do so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// What it is, and what helps.
    pub text: String,
    /// The family of which no client reaches any mapped pod; None: some may.
    pub closes: Option<Family>,
}

impl Observed {
    /// Adds what was found in another table.
    fn add(&mut self, other: Self) {
        self.mappings.extend(other.mappings);
        self.intact &= other.intact;
        self.contested |= other.contested;
        self.obstacles.extend(other.obstacles);
        self.host_addresses.extend(other.host_addresses);
    }
}

/// A packet filter that can carry mappings. Calls block until the kernel has answered; each
/// external program has a time limit.
pub trait Dataplane: Send {
    /// Name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Returns our mappings in the kernel. They are not read again if the kernel says that nothing
    /// has changed since the last read. The next [`Dataplane::apply`] starts from them.
    fn observe(&mut self) -> Result<Observed, DataplaneError>;

    /// Repairs the frame and applies the plan, in one transaction per address family. Afterwards
    /// the kernel has the whole plan. After an error, the family that failed is unchanged.
    fn apply(&mut self, plan: &Plan) -> Result<(), DataplaneError>;

    /// Sets the subnets within which connections between pods are masqueraded, from the next change
    /// on.
    fn set_neighbours(&mut self, neighbours: &[Subnet]);

    /// Sets whether every connection to a mapped port is masqueraded, from the next change on.
    fn set_masquerade(&mut self, on: bool);

    /// Sets the addresses at which mappings answer, from the next change on.
    fn set_host_addresses(&mut self, addresses: &BTreeSet<IpAddr>);

    /// Sets the static host ports of the node's pods, from the next change on. A driver whose rules name
    /// mapped ports only does not need them.
    fn set_static_ports(&mut self, _ports: &BTreeSet<PortKey>) {}

    /// Returns whether IPv6 mappings can be made.
    fn has_ipv6(&self) -> bool;

    /// Returns the monitor to which the driver reports its changes and reads, so that the monitor
    /// can tell them from changes by other programs.
    fn changes(&self) -> ChangeMonitor;

    /// Returns the conntrack entries that changes have left behind. Clear them right after each
    /// change: the next pod at an address must not get what is left of the previous one's clients.
    fn stale_flows(&self) -> StaleFlows;

    /// Removes everything that this driver makes; continues after failures.
    fn uninstall(&mut self) -> Result<(), DataplaneError>;
}
