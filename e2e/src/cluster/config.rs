//! The configuration of a cluster, and the description that its processes read.

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::network::{self, Machine};
use crate::versions::{Cni, Containerd, Minor};

/// How kube-proxy programs Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum ProxyMode {
    /// iptables rules, the default of Kubernetes.
    #[default]
    Iptables,
    /// nftables maps.
    Nftables,
}

impl Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// The address families of nodes, pods and Services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    /// Both, IPv4 first.
    #[default]
    V4First,
    /// Both, IPv6 first.
    V6First,
    /// IPv6 alone.
    V6Only,
}

impl Families {
    /// Returns the values that the cluster uses, in its order, of one for IPv4 and one for IPv6.
    pub(crate) fn of<T>(self, [ipv4, ipv6]: [T; 2]) -> Vec<T> {
        match self {
            Self::V4First => vec![ipv4, ipv6],
            Self::V6First => vec![ipv6, ipv4],
            Self::V6Only => vec![ipv6],
        }
    }

    /// Returns the same as a flag's value.
    pub(crate) fn list<T: AsRef<str>>(self, values: [T; 2]) -> String {
        let values = self.of(values);
        let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
        values.join(",")
    }
}

/// The choices of a test or of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Names the cluster's state folder and its cgroup.
    pub name: String,
    /// Nodes at the start; more can join later.
    pub nodes: u8,
    /// The version of every Kubernetes component.
    pub kubernetes: Minor,
    /// kube-proxy's mode on every node.
    pub proxy_mode: ProxyMode,
    /// The container runtime of every node.
    #[serde(default)]
    pub containerd: Containerd,
    /// What connects the pods.
    #[serde(default)]
    pub cni: Cni,
    /// The address families; others than the default need the bridge plugin.
    #[serde(default)]
    pub families: Families,
    /// Appended to the names of the Node objects.
    #[serde(default)]
    pub node_suffix: String,
    /// Whether frames between pods of one node pass iptables (`bridge-nf-call-iptables`).
    pub bridge_nf: bool,
    /// Limits the kubelet's back-off for containers that end again and again to one second. Without it the
    /// limit is five minutes. Needs Kubernetes 1.36.
    #[serde(default)]
    pub quick_restarts: bool,
    /// Whether the product's images are built and put on the nodes.
    pub product: bool,
    /// The `e2e` program that owns the cluster; this very program when `None`. Tests set
    /// `env!("CARGO_BIN_EXE_e2e")`.
    pub program: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "demo".to_owned(),
            nodes: 2,
            kubernetes: Minor::default(),
            proxy_mode: ProxyMode::default(),
            containerd: Containerd::default(),
            cni: Cni::default(),
            families: Families::default(),
            node_suffix: String::new(),
            bridge_nf: true,
            quick_restarts: false,
            product: true,
            program: None,
        }
    }
}

impl Config {
    /// Returns the name of a Node object.
    pub(crate) fn node_name(&self, index: u8) -> String {
        Machine::Node(index).name() + &self.node_suffix
    }

    /// Refuses a configuration that cannot work, before anything is built.
    pub fn validate(&self) -> Result<()> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 40 || !self.name.chars().all(allowed) {
            bail!(
                "cluster name {:?}: use 1 to 40 lower-case letters, digits and dashes",
                self.name
            );
        }
        if self.containerd == Containerd::V1_7 && !matches!(self.cni, Cni::Bridge | Cni::KubeRouter)
        {
            bail!(
                "containerd 1.7 has one directory of plugins: {} needs containerd 2",
                self.cni
            );
        }
        if self.nodes > network::MAX_NODES {
            bail!("{} nodes: at most {} fit", self.nodes, network::MAX_NODES);
        }
        Ok(())
    }
}

/// What every process of a cluster reads: the configuration and the paths of what was built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) config: Config,
    /// The cluster's folder: logs, keys, kubeconfigs.
    pub(crate) state: PathBuf,
    /// etcd and the Kubernetes components.
    pub(crate) kubernetes: PathBuf,
    /// containerd and the CNI plugins.
    pub(crate) node_tools: PathBuf,
    /// The programs of a CNI that is not part of the harness: its agent, and its plugins in `bin`.
    #[serde(default)]
    pub(crate) cni: Option<PathBuf>,
    /// Archives that every node imports before its kubelet starts.
    pub(crate) images: Vec<PathBuf>,
    pub(crate) audit_policy: PathBuf,
}

impl Spec {
    const FILE: &'static str = "cluster.json";

    pub(crate) fn load(state: &Path) -> Result<Self> {
        let path = state.join(Self::FILE);
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
    }

    pub(crate) fn save(&self) -> Result<()> {
        let path = self.state.join(Self::FILE);
        let text = serde_json::to_vec_pretty(self).context("encode the cluster's description")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.state.join("log").join(format!("{name}.log"))
    }

    pub(crate) fn pki(&self, file: &str) -> String {
        self.state
            .join("pki")
            .join(file)
            .to_string_lossy()
            .into_owned()
    }

    pub(crate) fn cgroup(&self) -> String {
        format!("portmapping-{}", self.config.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_cluster_names_are_refused() {
        let config = |name: &str| Config {
            name: name.to_owned(),
            ..Config::default()
        };
        for name in ["demo", "a-1", "0"] {
            assert!(config(name).validate().is_ok(), "{name:?} was refused");
        }
        for name in ["", "a/b", "..", "A", "a b", &"a".repeat(41)] {
            assert!(config(name).validate().is_err(), "{name:?} was accepted");
        }
    }
}
