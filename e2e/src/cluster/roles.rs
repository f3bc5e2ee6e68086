//! The program re-executes itself in these roles. Namespaces are entered by a fresh, single-threaded
//! process before it does anything else.

use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use anyhow::{Context, Result};
use clap::Subcommand;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::config::Spec;
use super::network::Machine;
use super::role_name::RoleName;
use super::{cgroups, components, control_plane, mounts, namespaces, node, owner};

/// What a process of the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Role {
    /// Owns the cluster from the root namespaces.
    Owner {
        /// The cluster's folder.
        state: PathBuf,
        /// End when standard input closes.
        #[arg(long)]
        attached: bool,
    },
    /// First process of the cluster.
    Init {
        /// The cluster's folder.
        state: PathBuf,
    },
    /// The control plane.
    ControlPlane {
        /// The cluster's folder.
        state: PathBuf,
    },
    /// First process of a node.
    NodeInit {
        /// The cluster's folder.
        state: PathBuf,
        /// The node's number.
        index: u8,
    },
    /// A node.
    Node {
        /// The cluster's folder.
        state: PathBuf,
        /// The node's number.
        index: u8,
    },
    /// First process of the client.
    ClientInit {
        /// The cluster's folder.
        state: PathBuf,
    },
    /// The client.
    Client {
        /// The cluster's folder.
        state: PathBuf,
    },
    /// Starts one more node; runs inside the cluster and ends when the node is plugged in.
    AddNode {
        /// The cluster's folder.
        state: PathBuf,
        /// The node's number.
        index: u8,
    },
}

impl Role {
    /// Runs the role to its end.
    pub fn run(self) -> Result<()> {
        match self {
            Self::Owner { state, attached } => owner::run(&Spec::load(&state)?, attached),
            Self::Init { state } => init(&Spec::load(&state)?),
            Self::ControlPlane { state } => {
                let spec = Spec::load(&state)?;
                let stdin = std::io::stdin().as_fd().try_clone_to_owned();
                let listener = TcpListener::from(stdin.context("take the relayed listener")?);
                control_plane::run(&spec, listener)
            }
            Self::NodeInit { state, index } => node_init(&Spec::load(&state)?, index),
            Self::Node { state, index } => node::run(&Spec::load(&state)?, index),
            Self::ClientInit { state } => {
                mounts::machine(None)?;
                reap_with(RoleName("client", None), &state)
            }
            Self::Client { state: _ } => node::run_client(),
            Self::AddNode { state, index } => {
                control_plane::add_machine(&Spec::load(&state)?, Machine::Node(index))
            }
        }
    }
}

fn init(spec: &Spec) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("ask to die with the owner")?;
    // If the owner ended before this line, the signal never comes; then its pipe is closed.
    std::io::stdout()
        .write_all(b"alive\n")
        .context("the owner is gone")?;
    namespaces::raise_file_limit()?;
    let layout = cgroups::enter(&spec.cgroup())?;
    mounts::machine(Some(&layout))?;
    let log = components::create_log(spec, "control-plane")?;
    let mut command = Command::new("/proc/self/exe");
    command.args(RoleName("control-plane", None).arguments(&spec.state));
    command.stderr(components::clone(&log)?).stdout(log);
    let code = namespaces::reap(&command.spawn().context("start the control plane")?)?;
    exit(code)
}

fn node_init(spec: &Spec, index: u8) -> Result<()> {
    namespaces::raise_file_limit()?;
    let name = Machine::Node(index).name();
    // The cgroups of an earlier machine of this name: kubelet would try to use them.
    cgroups::sweep(&name, std::time::Duration::from_secs(1));
    let layout = cgroups::enter(&name)?;
    mounts::machine(Some(&layout))?;
    mounts::node()?;
    reap_with(RoleName("node", Some(index)), &spec.state)
}

fn reap_with(role: RoleName, state: &Path) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    command.args(role.arguments(state));
    let code = namespaces::reap(&command.spawn().context("start the machine")?)?;
    exit(code)
}
