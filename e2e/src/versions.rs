//! What a cluster is made of: the version of Kubernetes, the container runtime, and the CNI.

use std::fmt::{self, Display};
use std::fs;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValue;
use serde::{Deserialize, Serialize};

use crate::paths;

/// A minor version of Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Minor {
    /// The oldest that has what is installed.
    V1_30,
    /// In between.
    V1_31,
    /// In between.
    V1_32,
    /// In between.
    V1_33,
    /// In between.
    V1_34,
    /// In between.
    V1_35,
    /// The newest.
    #[default]
    V1_36,
}

impl Minor {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V1_30,
        Self::V1_31,
        Self::V1_32,
        Self::V1_33,
        Self::V1_34,
        Self::V1_35,
        Self::V1_36,
    ];

    /// The full version, of every component.
    pub fn version(self) -> Result<String> {
        let [mod_file, _] = self.module_files();
        let mod_file = paths::sources().join("kubernetes").join(mod_file);
        required_version(&mod_file, "k8s.io/kubernetes")
    }

    /// The names of its go.mod and go.sum.
    pub(crate) fn module_files(self) -> [String; 2] {
        match self {
            Self::V1_36 => ["go.mod".to_owned(), "go.sum".to_owned()],
            older => ["mod", "sum"].map(|end| format!("v{older}.{end}")),
        }
    }
}

impl Display for Minor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1_30 => "1.30",
            Self::V1_31 => "1.31",
            Self::V1_32 => "1.32",
            Self::V1_33 => "1.33",
            Self::V1_34 => "1.34",
            Self::V1_35 => "1.35",
            Self::V1_36 => "1.36",
        })
    }
}

impl FromStr for Minor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wanted = text.trim_start_matches('v');
        let mut all = Self::ALL.into_iter();
        all.find(|minor| minor.to_string() == wanted)
            .with_context(|| {
                let all = Self::ALL.map(|minor| minor.to_string()).join(", ");
                format!("no Kubernetes {text:?} here: choose one of {all}")
            })
    }
}

/// The version of the container runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Containerd {
    /// The newest.
    #[default]
    #[value(name = "2")]
    V2,
    /// The last minor version before 2.
    #[value(name = "1.7")]
    V1_7,
}

impl Display for Containerd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V2 => "2",
            Self::V1_7 => "1.7",
        })
    }
}

/// What connects the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cni {
    /// The bridge plugin, with static routes between the nodes.
    #[default]
    Bridge,
    /// flannel, with VXLAN between the nodes.
    Flannel,
    /// kube-router: routes by BGP, and `NetworkPolicies`. Services stay with kube-proxy.
    KubeRouter,
    /// Cilium, in one of its modes of routing.
    Cilium(CiliumMode),
}

/// How Cilium serves Services, masquerades and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CiliumMode {
    /// VXLAN; Services by kube-proxy.
    A,
    /// VXLAN, Services and masquerading in BPF, and BPF host routing: replies of pods pass no netfilter.
    B,
    /// VXLAN, Services in BPF, masquerading by iptables.
    C,
    /// As `B`, with native routing and a route for each pod.
    D,
    /// As `B`, with legacy host routing.
    E,
}

impl Cni {
    const ALL: [Self; 8] = [
        Self::Bridge,
        Self::Flannel,
        Self::KubeRouter,
        Self::Cilium(CiliumMode::A),
        Self::Cilium(CiliumMode::B),
        Self::Cilium(CiliumMode::C),
        Self::Cilium(CiliumMode::D),
        Self::Cilium(CiliumMode::E),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Flannel => "flannel",
            Self::KubeRouter => "kube-router",
            Self::Cilium(CiliumMode::A) => "cilium:a",
            Self::Cilium(CiliumMode::B) => "cilium:b",
            Self::Cilium(CiliumMode::C) => "cilium:c",
            Self::Cilium(CiliumMode::D) => "cilium:d",
            Self::Cilium(CiliumMode::E) => "cilium:e",
        }
    }

    /// Whether Services are its business, so that no node runs kube-proxy.
    #[must_use]
    pub fn replaces_kube_proxy(self) -> bool {
        matches!(self, Self::Cilium(mode) if mode != CiliumMode::A)
    }
}

impl clap::ValueEnum for Cni {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        Some(match self {
            Self::Cilium(CiliumMode::A) => value.alias("cilium"),
            _ => value,
        })
    }
}

impl Display for Cni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The version that a `require` line of a go.mod names.
fn required_version(mod_file: &Path, module: &str) -> Result<String> {
    let text =
        fs::read_to_string(mod_file).with_context(|| format!("read {}", mod_file.display()))?;
    for line in text.lines() {
        let mut words = line
            .split_whitespace()
            .skip_while(|word| *word == "require");
        if words.next() == Some(module)
            && let Some(version) = words.next()
            && version.starts_with('v')
        {
            return Ok(version.to_owned());
        }
    }
    bail!("{} does not require {module}", mod_file.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_module_files() {
        for minor in Minor::ALL {
            let version = minor.version().expect("a version");
            assert!(version.starts_with(&format!("v{minor}.")), "{version}");
        }
        let module = paths::sources().join("kubernetes");
        assert!(required_version(&module.join("go.mod"), "k8s.io/nothing").is_err());
    }

    #[test]
    fn minor_versions_parse_as_they_print() {
        for minor in Minor::ALL {
            assert_eq!(minor.to_string().parse::<Minor>().ok(), Some(minor));
        }
        assert!("1.20".parse::<Minor>().is_err());
    }
}
