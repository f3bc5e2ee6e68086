//! `e2e test`: the end-to-end tests, on a new cluster or on an existing one.

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cluster::KUBECONFIG_VARIABLE;
use crate::progress::say;
use crate::{Cni, Containerd, Minor, ProxyMode, paths, process};

/// Tests that enter a node, read the API server's audit log, or boot a cluster themselves.
const NEED_OUR_CLUSTER: &[&str] = &[
    "map_ports::a_mapping_costs_one_write_and_one_event",
    "policy_pods::no_process_has_more_rights_in_the_kernel",
    "survive_faults::a_killed_enforcer_loses_no_port_no_byte_and_no_mapping",
    "survive_flush::",
    "survive_faults::rules_flushed_while_the_enforcer_is_down_come_back",
    "install_clusters::",
    "install_helm::",
    "install_test::",
    "map_families::",
    "map_range::",
    "map_results::",
    "map_start::",
    "map_static::an_annotated_static_pod_is_mapped",
    "map_static::the_first_static_host_port_of_a_node",
    "reach::",
    "reach_addresses::",
    "reach_firewall::",
    "survive_etcd::",
    "survive_losses::",
    "survive_node::",
    "survive_rollout::an_upgrade_undone_midway_loses_no_port_and_no_call",
    "survive_rollout::successor_ends::",
    "survive_rotation::",
    "uninstall::",
    "webhook_service::no_creation_fails_while_replicas_are_replaced_and_ended",
];

/// Tell the small suite which CNI its cluster has, which Kubernetes, which container runtime, and which mode
/// kube-proxy.
const CNI_VARIABLE: &str = "E2E_CNI";
const KUBERNETES_VARIABLE: &str = "E2E_KUBERNETES";
const CONTAINERD_VARIABLE: &str = "E2E_CONTAINERD";
const PROXY_MODE_VARIABLE: &str = "E2E_PROXY_MODE";

/// Replaces this process by cargo, which runs the small suite on a cluster of its own.
pub(super) fn small(
    cni: Cni,
    kubernetes: Minor,
    containerd: Containerd,
    proxy_mode: ProxyMode,
) -> Result<()> {
    let mut cargo = process::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::root());
    cargo.args(["test", "-p", "e2e", "--test", "product", "--"]);
    cargo.args([
        "--ignored",
        "--exact",
        "--nocapture",
        "networks::small_suite",
    ]);
    cargo.env(CNI_VARIABLE, cni.to_string());
    cargo.env(KUBERNETES_VARIABLE, kubernetes.to_string());
    cargo.env(CONTAINERD_VARIABLE, containerd.to_string());
    cargo.env(PROXY_MODE_VARIABLE, proxy_mode.to_string());
    let error = cargo.exec();
    bail!("cannot run cargo: {error}");
}

/// Replaces this process by cargo, which runs the tests.
pub(super) fn run(kubeconfig: Option<&Path>) -> Result<()> {
    let mut cargo = process::command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::root());
    cargo.args(["test", "-p", "e2e", "--test", "product"]);
    if kubeconfig.is_none() {
        cargo.args(["--test", "policy"]); // boots its own clusters, which have only the policies
    }
    cargo.args(["--", "--nocapture"]);
    if let Some(kubeconfig) = kubeconfig {
        let kubeconfig = kubeconfig
            .canonicalize()
            .with_context(|| format!("find the kubeconfig {}", kubeconfig.display()))?;
        cargo.env(KUBECONFIG_VARIABLE, kubeconfig);
        say(format_args!(
            "not run, because these tests enter nodes or boot clusters:"
        ));
        for test in NEED_OUR_CLUSTER {
            say(format_args!("  {test}"));
            cargo.args(["--skip", test]);
        }
    }
    let error = cargo.exec();
    bail!("cannot run cargo: {error}");
}
