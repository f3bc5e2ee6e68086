//! Cilium's agent as a process of each node, without its operator: nodes have their pod ranges from the
//! harness, and identities are objects.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::cluster::components::{Collects, start_with};
use crate::cluster::config::Spec;
use crate::cluster::mounts::RUN;
use crate::cluster::network::{self, Machine};
use crate::cluster::pki;
use crate::process;
use crate::versions::CiliumMode;

const APPLY_LIMIT: Duration = Duration::from_mins(2);
/// Where the agent looks for the sources of its BPF programs, which it compiles when it starts.
const LIBRARY: &str = "/var/lib/cilium";
const BPF: &str = "/sys/fs/bpf";

pub(super) fn start(spec: &Spec, mode: CiliumMode, index: u8, programs: &Path) -> Result<()> {
    let name = Machine::Node(index).name();
    let kubeconfig = spec.state.join(pki::INSIDE);
    if index == 1 {
        // its operator does this; agents wait for it
        let mut apply = process::command(spec.kubernetes.join("kubectl"));
        apply.env("KUBECONFIG", &kubeconfig);
        apply.args(["apply", "--server-side", "--recursive", "-f"]);
        process::run(apply.arg(programs.join("crds")), APPLY_LIMIT)
            .context("apply Cilium's custom resource definitions")?;
    }
    for folder in [LIBRARY.to_owned(), format!("{RUN}/cni")] {
        fs::create_dir_all(&folder).with_context(|| format!("create {folder}"))?;
    }
    let library = Path::new(LIBRARY).join("bpf");
    std::os::unix::fs::symlink(programs.join("bpf"), &library)
        .with_context(|| format!("link {}", library.display()))?;
    let none: Option<&str> = None;
    mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), none)
        .with_context(|| format!("mount bpf on {BPF}"))?;
    let mut arguments: Vec<String> = [
        "--cluster-name=default",
        "--identity-allocation-mode=crd",
        "--ipam=kubernetes",
        "--enable-ipv4=true",
        "--enable-ipv6=true",
        "--devices=eth0",
        "--direct-routing-device=eth0",
        "--enable-l7-proxy=false",
        "--enable-hubble=false",
        "--enable-health-checking=false",
        "--enable-endpoint-health-checking=false",
        "--enable-dynamic-config=false",
        "--cgroup-root=/run/cilium/cgroupv2",
        "--state-dir=/run/cilium",
    ]
    .map(str::to_owned)
    .into();
    arguments.extend([
        format!("--bpf-root={BPF}"),
        format!("--k8s-kubeconfig-path={}", kubeconfig.display()),
        format!("--write-cni-conf-when-ready={RUN}/cni/05-cilium.conflist"),
    ]);
    arguments.extend(flags(mode));
    let environment = [
        ("K8S_NODE_NAME", name.as_str()),
        ("CILIUM_K8S_NAMESPACE", "kube-system"),
    ];
    start_with(
        spec,
        &format!("{name}-cni"),
        &programs.join("cilium-agent"),
        &arguments,
        &environment,
        Collects::Often,
    )
}

/// What makes the mode.
fn flags(mode: CiliumMode) -> Vec<String> {
    let [range4, range6] = network::POD_RANGES;
    let tunnel = ["--routing-mode=tunnel", "--tunnel-protocol=vxlan"].map(str::to_owned);
    let replacement = [
        "--kube-proxy-replacement=true".to_owned(),
        format!("--enable-bpf-masquerade={}", mode != CiliumMode::C),
    ];
    match mode {
        CiliumMode::A => {
            let without = ["--kube-proxy-replacement=false".to_owned()];
            without.into_iter().chain(tunnel).collect()
        }
        CiliumMode::B | CiliumMode::C => replacement.into_iter().chain(tunnel).collect(),
        CiliumMode::D => {
            let native = [
                "--routing-mode=native".to_owned(),
                format!("--ipv4-native-routing-cidr={range4}"),
                format!("--ipv6-native-routing-cidr={range6}"),
                "--auto-direct-node-routes=true".to_owned(),
                "--enable-endpoint-routes=true".to_owned(),
            ];
            replacement.into_iter().chain(native).collect()
        }
        CiliumMode::E => {
            let legacy = ["--enable-host-legacy-routing=true".to_owned()];
            let all = replacement.into_iter().chain(tunnel);
            all.chain(legacy).collect()
        }
    }
}
