//! A node: containerd, kubelet and kube-proxy, in this order, in namespaces of their own.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::STATIC_PODS;
use super::cni;
use super::components::{Collects, search_path, start, wait_for_port, wait_for_socket};
use super::config::Spec;
use super::mounts::RUN;
use super::network::{self, Machine};
use crate::artifacts::image;
use crate::process;
use crate::versions::Containerd;

const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const PATIENCE: Duration = Duration::from_mins(3);

/// Waits for its network, starts the programs of the node, and never returns.
pub(crate) fn run(spec: &Spec, index: u8) -> Result<()> {
    let machine = Machine::Node(index);
    join_fabric(machine, spec.config.bridge_nf)?;
    write_configuration(spec, index)?;
    let name = machine.name();
    let (node, families) = (spec.config.node_name(index), spec.config.families);
    start(
        spec,
        &format!("{name}-containerd"),
        &spec.node_tools.join("containerd"),
        &["--config".to_owned(), format!("{RUN}/containerd.toml")],
        Collects::Often,
    )?;
    wait_for_socket(CONTAINERD_SOCKET, PATIENCE)?;
    for archive in &spec.images {
        import(spec, archive)?;
    }
    // A kubelet that finds no API server backs off for seconds.
    wait_for_port(network::API_SERVER_SOCKET, PATIENCE)?;
    start(
        spec,
        &format!("{name}-kubelet"),
        &spec.kubernetes.join("kubelet"),
        &[
            format!("--config={RUN}/kubelet.yaml"),
            format!(
                "--kubeconfig={}",
                spec.state.join(format!("{name}.kubeconfig")).display()
            ),
            format!("--hostname-override={node}"),
            format!(
                "--node-ip={}",
                families.list([machine.ipv4(), machine.ipv6()])
            ),
        ],
        Collects::Often,
    )?;
    if !spec.config.cni.replaces_kube_proxy() {
        start_proxy(spec, index)?;
    }
    cni::start_agent(spec, index)?;
    loop {
        thread::park();
    }
}

fn start_proxy(spec: &Spec, index: u8) -> Result<()> {
    let name = Machine::Node(index).name();
    let pods = spec.config.families.list(network::POD_RANGES);
    start(
        spec,
        &format!("{name}-kube-proxy"),
        &spec.kubernetes.join("kube-proxy"),
        &[
            format!(
                "--kubeconfig={}",
                spec.state.join("proxy.kubeconfig").display()
            ),
            format!("--hostname-override={}", spec.config.node_name(index)),
            format!("--cluster-cidr={pods}"),
            format!("--proxy-mode={}", spec.config.proxy_mode),
            // These sysctls belong to the whole machine.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0s".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
        ],
        Collects::Often,
    )
}

/// The client: a machine with addresses and no programs.
pub(crate) fn run_client() -> Result<()> {
    join_fabric(Machine::Client, false)?;
    loop {
        thread::park();
    }
}

fn join_fabric(machine: Machine, bridge_nf: bool) -> Result<()> {
    let name = machine.name();
    nix::unistd::sethostname(&name).context("set the host name")?;
    let mut go = [0; 2];
    std::io::stdin()
        .read_exact(&mut go)
        .context("wait for the fabric")?;
    network::configure(machine, bridge_nf).with_context(|| format!("configure {name}"))
}

fn import(spec: &Spec, archive: &Path) -> Result<()> {
    let mut ctr = process::command(spec.node_tools.join("ctr"));
    ctr.env("PATH", search_path(spec));
    ctr.args([
        "--address",
        CONTAINERD_SOCKET,
        "--namespace",
        "k8s.io",
        "images",
        "import",
    ]);
    process::run(ctr.arg(archive), PATIENCE)
        .with_context(|| format!("import {}", archive.display()))
        .map(drop)
}

fn write_configuration(spec: &Spec, index: u8) -> Result<()> {
    fs::create_dir_all(STATIC_PODS).with_context(|| format!("create {STATIC_PODS}"))?;
    let files = [
        ("containerd.toml", containerd(spec)),
        ("kubelet.yaml", kubelet(spec)),
        // What pods with dnsPolicy Default get: there is no resolver on the fabric.
        ("resolv.conf", "options ndots:1\n".to_owned()),
    ];
    for (file, text) in files {
        let path = Path::new(RUN).join(file);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    cni::configure(&spec.config, index)
}

fn containerd(spec: &Spec) -> String {
    let general = format!(
        r#"root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
"#
    );
    let pause = image::PAUSE;
    if spec.config.containerd == Containerd::V1_7 {
        // one directory of plugins: a CNI that brings plugins of its own needs containerd 2
        let bin = spec.node_tools.display();
        return format!(
            r#"version = 2
{general}[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{RUN}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#
        );
    }
    let cni = spec.cni.as_ref().map(|folder| folder.join("bin"));
    let plugins: Vec<_> = [Some(spec.node_tools.clone()), cni]
        .into_iter()
        .flatten()
        .map(|folder| format!("\"{}\"", folder.display()))
        .collect();
    format!(
        r#"version = 3
{general}[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{bin}]
    conf_dir = "{RUN}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#,
        bin = plugins.join(", "),
    )
}

fn kubelet(spec: &Spec) -> String {
    let mut kubelet = serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": spec.pki("ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": true,
        "enforceNodeAllocatable": [],
        // 1.35 and later refuse to start on cgroup v1 without it; earlier ones accept it.
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": ["10.96.0.10"],
        "clusterDomain": "cluster.local",
        "resolvConf": format!("{RUN}/resolv.conf"),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        // A full disk or a busy machine must not evict pods of a test cluster.
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "registryPullQPS": 0,
        "oomScoreAdj": 0,
        "syncFrequency": "10s",
        "staticPodPath": STATIC_PODS,
    });
    if spec.config.quick_restarts {
        kubelet["crashLoopBackOff"] = serde_json::json!({ "maxContainerRestartPeriod": "1s" });
    }
    kubelet.to_string()
}
