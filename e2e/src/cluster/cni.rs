//! The network of the pods: the plugins of the harness with static routes, or a CNI as users install it.

mod cilium;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use super::components::{Collects, start_with};
use super::config::{Config, Families, Spec};
use super::mounts::RUN;
use super::network;
use super::pki;
use crate::api::Api;
use crate::process;
use crate::versions::Cni;
use crate::wait::{self, Probe};

const PATIENCE: Duration = Duration::from_mins(3);
const POLL: Duration = Duration::from_millis(50);
/// What flannel's plugin reads; its agent writes it when it knows the node's pod range.
const FLANNEL_SUBNET: &str = "/run/flannel/subnet.env";

/// Writes the configuration of plugins that need no agent, before the kubelet starts.
pub(crate) fn configure(config: &Config, index: u8) -> Result<()> {
    let families = config.families;
    match config.cni {
        Cni::Bridge => write("10-pod.conflist", &bridge("cni0", index, "1.0.0", families)),
        Cni::KubeRouter => write(
            "10-kuberouter.conflist",
            &bridge("kube-bridge", index, "0.3.1", families),
        ),
        Cni::Flannel | Cni::Cilium(_) => Ok(()), // written when its agent is ready
    }
}

/// Gives the node its pod ranges and starts the agent, after the kubelet was started.
pub(crate) fn start_agent(spec: &Spec, index: u8) -> Result<()> {
    let Some(programs) = &spec.cni else {
        return Ok(());
    };
    let name = spec.config.node_name(index);
    assign_ranges(spec, &name, index)?;
    let kubeconfig = spec.state.join(pki::INSIDE);
    let kubeconfig = kubeconfig.display();
    let log = format!("{name}-cni");
    match spec.config.cni {
        Cni::Bridge => Ok(()),
        Cni::Flannel => {
            let [range4, range6] = network::POD_RANGES;
            let net = json!({
                "Network": range4, "EnableIPv4": true, "IPv6Network": range6, "EnableIPv6": true,
                "Backend": { "Type": "vxlan" },
            });
            let file = format!("{RUN}/flannel.json");
            fs::write(&file, net.to_string()).with_context(|| format!("write {file}"))?;
            let arguments = [
                "--kube-subnet-mgr".to_owned(),
                format!("--kubeconfig-file={kubeconfig}"),
                "--ip-masq".to_owned(),
                "--iface=eth0".to_owned(),
                format!("--net-config-path={file}"),
                format!("--subnet-file={FLANNEL_SUBNET}"),
                "--set-node-network-unavailable=false".to_owned(),
            ];
            let agent = programs.join("flannel");
            let environment = [("NODE_NAME", name.as_str())];
            start_with(
                spec,
                &log,
                &agent,
                &arguments,
                &environment,
                Collects::Often,
            )?;
            wait::until("flannel to know its range", PATIENCE, POLL, || {
                Ok(if Path::new(FLANNEL_SUBNET).is_file() {
                    Probe::Done(())
                } else {
                    Probe::Missing(format!("no {FLANNEL_SUBNET}"))
                })
            })?;
            // as in flannel's manifest
            let list = json!({
                "name": "cbr0",
                "cniVersion": "0.3.1",
                "plugins": [
                    {
                        "type": "flannel",
                        "delegate": { "hairpinMode": true, "isDefaultGateway": true },
                    },
                    { "type": "portmap", "capabilities": { "portMappings": true } },
                ],
            });
            write("10-flannel.conflist", &list.to_string())
        }
        Cni::KubeRouter => {
            own_routing_tables()?;
            // Services stay with kube-proxy: kube-router's own proxy needs IPVS
            let arguments = [
                format!("--kubeconfig={kubeconfig}"),
                format!("--hostname-override={name}"),
                "--run-router=true".to_owned(),
                "--run-firewall=true".to_owned(),
                "--run-service-proxy=false".to_owned(),
                "--enable-cni=false".to_owned(),
                "--enable-overlay=false".to_owned(),
                "--enable-ipv6=true".to_owned(),
                // its IPv6 policies name sets that do not exist yet, and a failure leaves IPv4's undone,
                // for 5 minutes by default
                "--iptables-sync-period=5s".to_owned(),
                format!(
                    "--service-cluster-ip-range={}",
                    network::SERVICE_RANGES.join(",")
                ),
            ];
            let agent = programs.join("kube-router");
            start_with(spec, &log, &agent, &arguments, &[], Collects::Often)
        }
        Cni::Cilium(mode) => cilium::start(spec, mode, index, programs),
    }
}

/// The configuration of the bridge plugin, with the node's own ranges.
fn bridge(bridge: &str, index: u8, version: &str, families: Families) -> String {
    let ranges = network::pod_ranges(index).map(|subnet| json!([{ "subnet": subnet }]));
    let routes = ["0.0.0.0/0", "::/0"].map(|all| json!({ "dst": all }));
    json!({
        "cniVersion": version,
        "name": "pod",
        "plugins": [
            {
                "type": "bridge",
                "bridge": bridge,
                "isGateway": true,
                "ipMasq": false,
                // Without it a pod cannot reach itself through its node.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": families.of(ranges),
                    "routes": families.of(routes),
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
    .to_string()
}

fn write(name: &str, text: &str) -> Result<()> {
    let folder = format!("{RUN}/cni");
    fs::create_dir_all(&folder).with_context(|| format!("create {folder}"))?;
    let path = format!("{folder}/{name}");
    fs::write(&path, text).with_context(|| format!("write {path}"))
}

/// The controller that assigns ranges is off, so that a node always gets the same ones.
fn assign_ranges(spec: &Spec, name: &str, index: u8) -> Result<()> {
    let api = Api::new(&spec.state.join(pki::INSIDE))?;
    let ranges = network::pod_ranges(index);
    let changes = json!({ "spec": { "podCIDR": ranges[0], "podCIDRs": ranges } });
    let what = format!("{name} to register");
    wait::until(&what, PATIENCE, POLL, || {
        Ok(
            match api.patch(&format!("/api/v1/nodes/{name}"), &changes) {
                Ok(_) => Probe::Done(()),
                Err(error) => Probe::Missing(format!("{error:#}")),
            },
        )
    })
}

/// kube-router adds names to `/etc/iproute2/rt_tables`: it gets a copy.
fn own_routing_tables() -> Result<()> {
    let copy = format!("{RUN}/iproute2");
    let mut command = process::command("cp");
    process::run(command.args(["-r", "/etc/iproute2", &copy]), PATIENCE)?;
    mount(
        Some(copy.as_str()),
        "/etc/iproute2",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("bind {copy} over /etc/iproute2"))
}
