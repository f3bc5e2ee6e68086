//! The `e2e` command line.

mod suite;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::cluster::roles::Role;
use crate::cluster::{Cluster, state};
use crate::progress::{Step, out, say};
use crate::{
    Cni, Config, Containerd, Minor, ProxyMode, chaos, compatibility, conformance, demo, install,
    kernels,
};

/// A real Kubernetes cluster on this machine, with the product in it.
#[derive(Debug, Parser)]
#[command(name = "e2e", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a cluster, install the product, and show it at work.
    Demo(Options),
    /// Boot a cluster and install the product; does nothing where that is done already.
    Up {
        #[command(flatten)]
        options: Options,
        /// Do not install the product.
        #[arg(long)]
        no_install: bool,
    },
    /// Run the end-to-end tests, on a cluster of their own or on one that you have.
    Test {
        /// A cluster that you already have, in which the images are available. The product is
        /// installed into it, and stays.
        #[arg(long, value_name = "FILE")]
        kubeconfig: Option<PathBuf>,
        /// Only the small suite, on a cluster with this CNI.
        #[arg(long, value_enum, conflicts_with = "kubeconfig")]
        cni: Option<Cni>,
        /// Only the small suite, on a cluster of this minor version, 1.30 to 1.36.
        #[arg(long, conflicts_with = "kubeconfig")]
        kubernetes: Option<Minor>,
        /// Only the small suite, with this container runtime.
        #[arg(long, value_enum, conflicts_with = "kubeconfig")]
        containerd: Option<Containerd>,
        /// Only the small suite, with this mode of kube-proxy.
        #[arg(long, value_enum, conflicts_with = "kubeconfig")]
        proxy_mode: Option<ProxyMode>,
    },
    /// Boot a new cluster and inject faults, round after round.
    Chaos(chaos::Options),
    /// Run the tests in network namespaces on the kernels of other Debian releases, in an emulator.
    Kernels(kernels::Options),
    /// Run Kubernetes' own conformance tests on a new cluster, in which every pod of theirs asks for a mapping.
    Conformance(conformance::Options),
    /// Print the tables of what the small suite (`test --cni`), `kernels` and `conformance` have shown on this
    /// machine.
    Compatibility,
    /// Take a cluster down and remove everything it left.
    Down {
        #[command(flatten)]
        name: Name,
        /// All clusters.
        #[arg(long)]
        all: bool,
    },
    /// Run a command on a host of the cluster.
    Exec {
        #[command(flatten)]
        name: Name,
        /// client, control-plane, node1, node2, ...
        host: String,
        /// The command and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print which clusters are up, with their nodes and pods.
    Status,
    /// Kill every process of a node at once, as a power cut does.
    KillNode {
        #[command(flatten)]
        name: Name,
        /// The node's number.
        index: u8,
    },
    /// Start a node: a new one or one that was killed.
    AddNode {
        #[command(flatten)]
        name: Name,
        /// The node's number.
        index: u8,
    },
    #[command(subcommand, hide = true)]
    Internal(Role),
}

#[derive(Debug, Args)]
struct Name {
    /// Which cluster; several can run side by side.
    #[arg(long, default_value = "demo")]
    name: String,
}

#[derive(Debug, Args)]
struct Options {
    #[command(flatten)]
    name: Name,
    /// How many nodes, without the control plane.
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Minor version: 1.30 to 1.36.
    #[arg(long, default_value_t)]
    kubernetes: Minor,
    /// kube-proxy's mode.
    #[arg(long, value_enum, default_value_t)]
    proxy_mode: ProxyMode,
    /// What connects the pods.
    #[arg(long, value_enum, default_value_t)]
    cni: Cni,
    /// The container runtime.
    #[arg(long, value_enum, default_value_t)]
    containerd: Containerd,
    /// Whether traffic between pods of one node passes iptables (bridge-nf-call-iptables).
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    bridge_nf: bool,
    /// A cluster that you already have, in which the images are available.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl Options {
    fn cluster(self, product: bool) -> Result<Cluster> {
        let Self {
            name,
            nodes,
            kubernetes,
            proxy_mode,
            cni,
            containerd,
            bridge_nf,
            kubeconfig,
        } = self;
        if let Some(kubeconfig) = kubeconfig {
            return Cluster::attach(&kubeconfig);
        }
        let name = name.name;
        let program = None;
        Cluster::up(&Config {
            name,
            nodes,
            kubernetes,
            proxy_mode,
            cni,
            containerd,
            bridge_nf,
            quick_restarts: false,
            product,
            program,
            ..Config::default()
        })
    }
}

/// Parses the arguments, runs, and turns an error into a message and an exit code.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(options) => {
            let mut cluster = options.cluster(true)?;
            demo::install_and_run(&mut cluster)?;
            usage(&cluster);
        }
        Command::Up {
            options,
            no_install,
        } => {
            let mut cluster = options.cluster(!no_install)?;
            if !no_install {
                install::install(&mut cluster)?;
            }
            out!("{}", export(&cluster));
        }
        Command::Test {
            kubeconfig,
            cni: None,
            kubernetes: None,
            containerd: None,
            proxy_mode: None,
        } => suite::run(kubeconfig.as_deref())?,
        Command::Test {
            cni,
            kubernetes,
            containerd,
            proxy_mode,
            ..
        } => suite::small(
            cni.unwrap_or_default(),
            kubernetes.unwrap_or_default(),
            containerd.unwrap_or_default(),
            proxy_mode.unwrap_or_default(),
        )?,
        Command::Chaos(options) => chaos::run(&options)?,
        Command::Kernels(options) => kernels::run(&options)?,
        Command::Conformance(options) => conformance::run(&options)?,
        Command::Compatibility => out!("{}", compatibility::tables()?),
        Command::Down { name, all } => down(if all { state::all() } else { vec![name.name] })?,
        Command::Exec {
            name,
            host,
            command,
        } => return exec(&find(&name)?, &host, &command),
        Command::Status => status()?,
        Command::KillNode { name, index } => find(&name)?.kill_node(index)?,
        Command::AddNode { name, index } => find(&name)?.add_node(index)?,
        Command::Internal(role) => role.run()?,
    }
    Ok(())
}

fn find(name: &Name) -> Result<Cluster> {
    let Name { name } = name;
    Cluster::find(name)?
        .with_context(|| format!("no cluster {name} is up: start it with `e2e up --name {name}`"))
}

fn down(names: Vec<String>) -> Result<()> {
    for name in names {
        let step = Step::start(format!("cluster {name}"));
        if Cluster::destroy(&name)? {
            step.done("down");
        } else {
            say(format_args!("there is no cluster {name}"));
        }
    }
    Ok(())
}

fn exec(cluster: &Cluster, host: &str, command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command to run")?;
    let error = cluster
        .command(host, Path::new(program))?
        .args(arguments)
        .exec();
    bail!("cannot run nsenter: {error}");
}

fn status() -> Result<()> {
    let mut found = false;
    for name in state::all() {
        let Some(cluster) = Cluster::find(&name)? else {
            out!("{name}: not running, but has left its folder (e2e down --name {name})");
            continue;
        };
        found = true;
        let nodes = cluster.nodes()?.join(", ");
        if let Some(config) = cluster.config() {
            let Config {
                kubernetes,
                proxy_mode,
                ..
            } = config;
            out!(
                "{name}: Kubernetes {kubernetes}, kube-proxy {proxy_mode}; hosts: {nodes}, client, control-plane"
            );
        }
        out!("{}", export(&cluster));
        match cluster.kubectl_run(["get", "nodes,pods", "-A", "-o", "wide"]) {
            Ok(text) => out!("{}\n", text.trim_end()),
            Err(error) => out!("the API server does not answer: {error:#}\n"),
        }
    }
    if !found {
        out!("no cluster is up");
    }
    Ok(())
}

fn export(cluster: &Cluster) -> String {
    let kubeconfig = cluster.kubeconfig().display();
    match cluster.binaries() {
        Some(binaries) => {
            format!(
                "export KUBECONFIG={kubeconfig} PATH={}:$PATH",
                binaries.display()
            )
        }
        None => format!("export KUBECONFIG={kubeconfig}"),
    }
}

fn usage(cluster: &Cluster) {
    let Some(config) = cluster.config() else {
        return;
    };
    let name = match config.name.as_str() {
        "demo" => String::new(),
        name => format!(" --name {name}"),
    };
    let export = export(cluster);
    out!(
        "\nThe cluster stays up. To use it:\n\n    \
         {export}\n    \
         kubectl get pods -o wide\n    \
         cargo run -p e2e -- exec{name} client -- curl -s http://NODE-IP:HOST-PORT/\n\n\
         To take it down, leaving nothing:\n\n    \
         cargo run -p e2e -- down{name}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_focus_that_is_no_regular_expression_is_refused_with_the_reason() {
        let parsed = |focus| Cli::try_parse_from(["e2e", "conformance", "--focus", focus]);
        assert!(parsed(r"\[sig-(network|node)\].*Services").is_ok());
        let error = parsed("[sig-network").expect_err("a refusal").to_string();
        assert!(
            error.contains("--focus") && error.contains("unclosed character class"),
            "{error}"
        );
    }
}
