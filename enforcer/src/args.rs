//! Flags of `enforcer`, and what they mean together.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use portmapping_enforcer_core::Config;
use portmapping_runtime::flags::duration;
use portmapping_runtime::log::LogArgs;
use portmapping_shared::contract::DEFAULT_MAX_PORTS;
use portmapping_shared::{PortRange, PortSet};

use portmapping_dataplane::Subnet;
use portmapping_keeper::{DEFAULT_SOCKET, KeeperArgs};

/// Where the enforcer answers health probes and metrics.
pub const ADMIN_SOCKET: &str = "/run/enforcer/admin.sock";

/// Gives pods random host ports on their node
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// The log
    #[command(flatten)]
    pub log: LogArgs,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Map the pods of this node
    Run(Box<RunArgs>),
    /// Hold host ports for the enforcer beside it
    Keep(KeeperArgs),
    /// Remove every trace from this node
    Uninstall(UninstallArgs),
    /// Ask a running enforcer how it is; for exec probes
    Health(HealthArgs),
}

/// Flags of `enforcer run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of this node
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Host ports to allocate from; the same as the keeper's
    #[arg(long, env = "PORTMAPPING_RANGE", default_value = "20000-29999")]
    range: PortRange,
    /// Host ports never to allocate: ports and ranges, separated by commas
    #[arg(long, env = "PORTMAPPING_EXCLUDE", value_delimiter = ',')]
    exclude: Vec<PortRange>,
    /// The cluster's --service-node-port-range: no socket shows that kube-proxy uses these
    #[arg(
        long,
        env = "PORTMAPPING_NODE_PORT_RANGE",
        default_value = "30000-32767"
    )]
    node_port_range: PortRange,
    /// How long a released port rests, still held, before another pod may get it
    #[arg(long, env = "PORTMAPPING_COOLDOWN", default_value = "30s", value_parser = duration)]
    cooldown: Duration,
    /// How long a port found in another process's hands is left alone
    #[arg(long, env = "PORTMAPPING_QUARANTINE", default_value = "60s", value_parser = duration)]
    quarantine: Duration,
    /// Ports one pod may ask for
    #[arg(long, env = "PORTMAPPING_MAX_PORTS", default_value_t = DEFAULT_MAX_PORTS)]
    max_ports: usize,
    /// What carries the mappings; a change moves those of this node over
    #[arg(
        long,
        env = "PORTMAPPING_BACKEND",
        value_enum,
        default_value = "iptables"
    )]
    backend: BackendChoice,
    /// Which iptables to use; auto takes the one the node uses already
    #[arg(long, env = "PORTMAPPING_IPTABLES", value_enum, default_value = "auto")]
    iptables: IptablesChoice,
    /// Pod subnets of this node, where bridge-nf-call-iptables is 0; without it, those of the node's
    /// bridges
    #[arg(long, env = "PORTMAPPING_NEIGHBOURS", value_delimiter = ',')]
    neighbours: Vec<Subnet>,
    /// Directory of the container runtime's CNI results, which name a pod's address before its
    /// status does; empty for not looking there
    #[arg(
        long,
        value_name = "DIR",
        env = "PORTMAPPING_CNI_RESULTS",
        default_value = "/var/lib/cni/results"
    )]
    cni_results: OsString,
    /// How often the rules in the kernel are compared with what they should be, besides whenever
    /// the kernel announces a change (iptables-legacy's are not announced)
    #[arg(long, env = "PORTMAPPING_CHECK_EVERY", default_value = "5s", value_parser = duration)]
    check_every: Duration,
    /// Unix socket of the keeper
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    keeper_socket: PathBuf,
    /// Unix socket for health, metrics and state
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    admin_socket: PathBuf,
    /// TCP address for health, metrics and state as well; a fixed port keeps the next version's
    /// pod from starting beside this one
    #[arg(long, value_name = "ADDRESS", env = "PORTMAPPING_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
}

/// What carries the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// Chains, through the iptables programs.
    Iptables,
    /// A table of maps, over netlink.
    Nftables,
}

/// Which of the two kinds of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IptablesChoice {
    /// The one the node uses already.
    Auto,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

/// Flags of `enforcer uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Stay afterwards, ready, until told to end: for a `DaemonSet` that cleans every node
    #[arg(long)]
    pub stay: bool,
    /// Unix socket for the readiness probe of --stay
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,
    /// Directory in which keepers find each other
    #[arg(long, value_name = "DIR", default_value = "/run/portmapping")]
    pub run_dir: PathBuf,
}

/// Flags of `enforcer health`.
#[derive(Args, Clone, Debug)]
pub struct HealthArgs {
    /// Succeed only if the enforcer has taken its node up
    #[arg(long)]
    pub ready: bool,
    /// Ask the keeper instead
    #[arg(long, conflicts_with = "ready")]
    pub keeper: bool,
    /// Unix socket to ask
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Everything `enforcer run` was told, once.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Name of the node.
    pub node: String,
    /// The state machine's settings; node facts are still to be added.
    pub core: Config,
    /// What carries the mappings.
    pub backend: BackendChoice,
    /// Which iptables.
    pub iptables: IptablesChoice,
    /// Pod subnets behind the node's bridge.
    pub neighbours: Vec<Subnet>,
    /// Where the container runtime puts CNI results; None where nobody is to look.
    pub cni_results: Option<PathBuf>,
    /// Period of the comparison with the kernel.
    pub check_every: Duration,
    /// Keeper's socket.
    pub keeper_socket: PathBuf,
    /// Admin socket.
    pub admin_socket: PathBuf,
    /// Admin server on TCP.
    pub metrics_listen: Option<SocketAddr>,
}

/// Flags that cannot mean anything together.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFlags {
    /// Nothing is left to allocate.
    #[error("--range {0} is excluded whole by --exclude and --node-port-range: nothing is left")]
    NothingLeft(PortRange),
    /// The loop would never sleep.
    #[error("--check-every must be at least 1s")]
    TooOften,
}

impl TryFrom<RunArgs> for RunConfig {
    type Error = InvalidFlags;

    fn try_from(args: RunArgs) -> Result<Self, InvalidFlags> {
        // taken apart whole: a flag nobody reads does not compile
        let RunArgs {
            node_name,
            range,
            exclude,
            node_port_range,
            cooldown,
            quarantine,
            max_ports,
            backend,
            iptables,
            neighbours,
            cni_results,
            check_every,
            keeper_socket,
            admin_socket,
            metrics_listen,
        } = args;
        let mut excluded = PortSet::default();
        excluded.insert_range(node_port_range);
        for range in exclude {
            excluded.insert_range(range);
        }
        if range.ports().all(|port| excluded.contains(port)) {
            return Err(InvalidFlags::NothingLeft(range));
        }
        if check_every < Duration::from_secs(1) {
            return Err(InvalidFlags::TooOften);
        }
        let core = Config {
            range,
            excluded,
            cooldown,
            quarantine,
            max_ports,
            ipv6: true,
        };
        Ok(Self {
            node: node_name,
            core,
            backend,
            iptables,
            neighbours,
            cni_results: (!cni_results.is_empty()).then(|| cni_results.into()),
            check_every,
            keeper_socket,
            admin_socket,
            metrics_listen,
        })
    }
}

#[cfg(test)]
mod tests;
