//! Flags of `enforcer` in two stages: the raw flags, and the validated [`RunConfig`].

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use portmapping_enforcer_core::Config;
use portmapping_runtime::flags::duration;
use portmapping_runtime::log::LogArgs;
use portmapping_shared::contract::{DEFAULT_MAX_PORTS, MOST_PORTS};
use portmapping_shared::{PortRange, PortSet};

use portmapping_dataplane::{AddressSelection, Subnet, subnet};
use portmapping_keeper::{DEFAULT_SOCKET, KeeperArgs, RUN_DIR};

use crate::masquerade::MasqueradeChoice;

/// Default path of the unix socket for health, metrics and state.
pub const ADMIN_SOCKET: &str = "/run/enforcer/admin.sock";

/// The nodes on which the manifests run an enforcer.
const TEST_NODES: &str = "kubernetes.io/os=linux,kubernetes.io/arch in (amd64,arm64),type notin (virtual-kubelet),\
                          eks.amazonaws.com/compute-type notin (fargate)";

/// Gives pods random host ports on their node
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// Flags of the log.
    #[command(flatten)]
    pub log: LogArgs,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Map the pods of this node
    Run(Box<RunArgs>),
    /// Hold host ports for the enforcer of the same pod
    Keep(KeeperArgs),
    /// Remove all rules of portmapping from this node
    Uninstall(UninstallArgs),
    /// Remove portmapping from all nodes after helm uninstall; for the job of the chart
    UninstallNodes(UninstallNodesArgs),
    /// Test the installation: map a pod on each node and reach it; for the job of the chart
    Test(TestArgs),
    /// Answer connections with a name; for the pods of `test`
    #[command(hide = true)]
    TestAnswer(TestAnswerArgs),
    /// Reach one address; for the pods of `test`
    #[command(hide = true)]
    TestReach(TestReachArgs),
    /// Check a running enforcer or keeper; for exec probes
    Health(HealthArgs),
    /// Print what a running enforcer knows: backend, pods, ports
    Status(StatusArgs),
}

/// Flags of `enforcer run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of this node
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Name of the enforcer's own pod: before it is ready, a dry run of a publication on it must be
    /// permitted; without a name nothing is asked
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Host ports to allocate from; set the keeper's --range to the same
    #[arg(long, env = "PORTMAPPING_RANGE", default_value = "20000-29999")]
    range: PortRange,
    /// Host ports never to allocate: ports and ranges, separated by commas
    #[arg(long, env = "PORTMAPPING_EXCLUDE", value_delimiter = ',')]
    exclude: Vec<PortRange>,
    /// The cluster's --service-node-port-range; these ports are never allocated, because kube-proxy
    /// may use them without a socket
    #[arg(
        long,
        env = "PORTMAPPING_NODE_PORT_RANGE",
        default_value = "30000-32767"
    )]
    node_port_range: PortRange,
    /// Cool-down: how long a released port stays held before another pod can get it
    #[arg(long, env = "PORTMAPPING_COOLDOWN", default_value = "30s", value_parser = duration)]
    cooldown: Duration,
    /// Quarantine: how long a port that another process uses is not allocated
    #[arg(long, env = "PORTMAPPING_QUARANTINE", default_value = "60s", value_parser = duration)]
    quarantine: Duration,
    /// Most ports that one pod may ask for; at most 128
    #[arg(long, env = "PORTMAPPING_MAX_PORTS", default_value_t = DEFAULT_MAX_PORTS, value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_PORTS))]
    max_ports: usize,
    /// A pod gets no new port while this many times the ports that it requests are cooling down
    #[arg(long, env = "PORTMAPPING_MAX_COOLING", default_value_t = 4, value_parser = positive)]
    max_cooling: usize,
    /// Share of the range, in percent, of which the ports of one namespace may be cooling down before
    /// its pods get no new ones, and which its pods may claim as static host ports
    #[arg(long, env = "PORTMAPPING_NAMESPACE_SHARE", default_value_t = 25, value_parser = positive)]
    namespace_share: usize,
    /// Packet filter that carries the mappings; auto takes iptables where it works, else nftables, and
    /// keeps the one that has the rules of this node; a change migrates those
    #[arg(long, env = "PORTMAPPING_BACKEND", value_enum, default_value = "auto")]
    backend: BackendChoice,
    /// Which iptables to use; auto takes the one that the node already uses
    #[arg(long, env = "PORTMAPPING_IPTABLES", value_enum, default_value = "auto")]
    iptables: IptablesChoice,
    /// Pod subnets of this node, where bridge-nf-call-iptables is 0; default: the subnets of the node's
    /// bridges, and of the pods that Cilium routes
    #[arg(long, env = "PORTMAPPING_NEIGHBOURS", value_delimiter = ',', value_parser = subnet)]
    neighbours: Vec<Subnet>,
    /// Whether connections to mapped ports are masqueraded, for networks whose replies leave the node past
    /// netfilter: auto, where Cilium says that it routes so; always; or never. Pods then see the node's
    /// address instead of the client's
    #[arg(
        long,
        env = "PORTMAPPING_MASQUERADE",
        value_enum,
        default_value = "auto"
    )]
    masquerade: MasqueradeChoice,
    /// Addresses of the node at which mapped ports answer. node: the internal and external addresses
    /// that its Node object names; all: every address, except loopback, link-local and multicast
    /// addresses; or the addresses in these subnets, separated by commas
    #[arg(
        long,
        value_name = "node|all|CIDR,...",
        env = "PORTMAPPING_HOST_ADDRESSES",
        default_value = "node"
    )]
    host_addresses: AddressSelection,
    /// Addresses of the node until its Node object is read: status.hostIPs by the downward API
    #[arg(long, env = "HOST_IPS", value_delimiter = ',')]
    host_ips: Vec<IpAddr>,
    /// Directories in which the container runtime may write CNI results, which have a pod's address
    /// before its status has; the one that was changed last is used; empty: use the status only
    #[arg(
        long,
        value_name = "DIR,...",
        env = "PORTMAPPING_CNI_RESULTS",
        value_delimiter = ',',
        default_value = "/var/lib/cni/results,/var/lib/cni/cache/results"
    )]
    cni_results: Vec<OsString>,
    /// How often the rules in the kernel are checked; the kernel also reports changes at once, except
    /// those of iptables-legacy
    #[arg(long, env = "PORTMAPPING_CHECK_EVERY", default_value = "5s", value_parser = duration)]
    check_every: Duration,
    /// Unix socket of the keeper
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    keeper_socket: PathBuf,
    /// Unix socket for health, metrics and state
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    admin_socket: PathBuf,
    /// TCP address for health and metrics; with a fixed port, the pod of the next version cannot start
    /// until this one has ended
    #[arg(long, value_name = "ADDRESS", env = "PORTMAPPING_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
}

/// Parses a number above 0.
fn positive(text: &str) -> Result<usize, String> {
    let number: Result<NonZeroUsize, _> = text.parse();
    number
        .map(NonZeroUsize::get)
        .map_err(|error| format!("{error}: write a number above 0"))
}

/// The packet filter that carries the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// iptables where it works, else nftables.
    Auto,
    /// Rules, through the iptables programs.
    Iptables,
    /// A table of maps, over netlink.
    Nftables,
}

/// Which kind of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IptablesChoice {
    /// The one that the node already uses.
    Auto,
    /// iptables-nft.
    Nft,
    /// iptables-legacy.
    Legacy,
}

/// Flags of `enforcer uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Name of this node: the conditions of its pods become False, with the reason Released
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Stay running and ready afterwards, until SIGTERM: for a `DaemonSet` that cleans every node
    #[arg(long)]
    pub stay: bool,
    /// Unix socket for the readiness probe of --stay
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub admin_socket: PathBuf,
    /// Directory of the node in which keepers find each other; it is removed
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
}

/// Flags of `enforcer uninstall-nodes`.
#[derive(Args, Clone, Debug)]
pub struct UninstallNodesArgs {
    /// The `DaemonSet` whose pods run `enforcer uninstall --stay`, as JSON
    #[arg(long, value_name = "JSON", env = "PORTMAPPING_DAEMON_SET")]
    pub daemon_set: String,
}

/// Flags of `enforcer test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Name of the pod that this runs in: its image runs on the nodes
    #[arg(long, env = "POD_NAME")]
    pub pod_name: String,
    /// Label selector of the nodes that must run an enforcer
    #[arg(long, value_name = "SELECTOR", env = "PORTMAPPING_TEST_NODES", default_value = TEST_NODES)]
    pub nodes: String,
}

/// Flags of `enforcer test-answer`.
#[derive(Args, Clone, Debug)]
pub struct TestAnswerArgs {
    /// What to answer
    #[arg(long)]
    pub name: String,
    /// TCP port to listen on
    #[arg(long)]
    pub port: u16,
}

/// Flags of `enforcer test-reach`.
#[derive(Args, Clone, Debug)]
pub struct TestReachArgs {
    /// Where to connect to
    #[arg(long)]
    pub address: SocketAddr,
    /// The expected answer
    #[arg(long)]
    pub name: String,
}

/// Flags of `enforcer health`.
#[derive(Args, Clone, Debug)]
pub struct HealthArgs {
    /// Succeed only if the enforcer is ready: it has read the kernel and the list of pods
    #[arg(long)]
    pub ready: bool,
    /// Check the keeper instead
    #[arg(long, conflicts_with = "ready")]
    pub keeper: bool,
    /// Unix socket to ask
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Flags of `enforcer status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Unix socket to ask
    #[arg(long, value_name = "PATH", default_value = ADMIN_SOCKET)]
    pub socket: PathBuf,
}

/// The validated flags of `enforcer run`.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Name of the node.
    pub node: String,
    /// Name of the enforcer's own pod.
    pub pod_name: Option<String>,
    /// The state machine's settings; the node's facts are added later.
    pub core: Config,
    /// The packet filter.
    pub backend: BackendChoice,
    /// Which iptables.
    pub iptables: IptablesChoice,
    /// Pod subnets behind the node's bridges.
    pub neighbours: Vec<Subnet>,
    /// Whether connections to mapped ports are masqueraded.
    pub masquerade: MasqueradeChoice,
    /// Which addresses of the node become host addresses.
    pub host_addresses: AddressSelection,
    /// Addresses of the node until its Node object is read.
    pub host_ips: Vec<IpAddr>,
    /// Where the container runtime may write CNI results; none to use the status only.
    pub cni_results: Vec<PathBuf>,
    /// Period of the check of the rules.
    pub check_every: Duration,
    /// The keeper's socket.
    pub keeper_socket: PathBuf,
    /// Unix socket for health, metrics and state.
    pub admin_socket: PathBuf,
    /// TCP address for health and metrics.
    pub metrics_listen: Option<SocketAddr>,
}

/// Why flags are refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFlags {
    /// No port is left to allocate.
    #[error(
        "--range {0} is excluded completely by --exclude and --node-port-range: choose another --range"
    )]
    NothingLeft(PortRange),
    /// The checks would take all of the processor.
    #[error("--check-every must be at least 1s")]
    TooOften,
}

impl TryFrom<RunArgs> for RunConfig {
    type Error = InvalidFlags;

    fn try_from(args: RunArgs) -> Result<Self, InvalidFlags> {
        // no `..`: a flag that is not used does not compile
        let RunArgs {
            node_name,
            pod_name,
            range,
            exclude,
            node_port_range,
            cooldown,
            quarantine,
            max_ports,
            max_cooling,
            namespace_share,
            backend,
            iptables,
            neighbours,
            masquerade,
            host_addresses,
            host_ips,
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
            max_cooling,
            namespace_share,
            ipv6: true,
            // set at the start
            epoch: Duration::ZERO,
        };
        Ok(Self {
            node: node_name,
            pod_name,
            core,
            backend,
            iptables,
            neighbours,
            masquerade,
            host_addresses,
            host_ips,
            cni_results: cni_results
                .into_iter()
                .filter(|dir| !dir.is_empty())
                .map(PathBuf::from)
                .collect(),
            check_every,
            keeper_socket,
            admin_socket,
            metrics_listen,
        })
    }
}

#[cfg(test)]
mod tests;
