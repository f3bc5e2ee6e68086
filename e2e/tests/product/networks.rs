//! What works with a CNI: the small suite, run by `e2e test --cni X` on a cluster of its own. It prints
//! which address the pod sees.

use std::env;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use e2e::starts::Collector;
use e2e::{Cluster, Cni, Config, install};
use serde_json::json;

use crate::map_start::{announcing, judge};
use crate::reach::{Target, vantages};
use crate::support::outside::{is_refused, run_at, tcp};
use crate::support::parts::{roll, with_flags};
use crate::support::space::Space;
use crate::support::{LIMIT, config, eventually};

/// The CNI of the cluster, as `--cni` takes it.
const VARIABLE: &str = "E2E_CNI";
const STARTS: usize = 5;

#[test]
#[ignore = "a cluster per CNI: e2e test --cni X"]
fn small_suite() -> Result<()> {
    let name = env::var(VARIABLE).unwrap_or_else(|_| Cni::default().to_string());
    let cni = Cni::from_str(&name, false).map_err(anyhow::Error::msg)?;
    let mut cluster = Cluster::start(&Config {
        cni,
        ..config(&format!("cni-{cni}"))
    })?;
    install::install(&mut cluster)?;
    Space::with(&cluster, "networks", |space| {
        let target = Target::create(space)?;
        let from = vantages(space, &target)?;
        let reach = |backend: &str| {
            let what = format!("{cni}, {backend}: every client to reach the pod");
            let seen = eventually(&what, || target.reached(&cluster, &from))?;
            println!("{cni}, {backend}: who reaches the pod, and which address it sees:\n{seen}");
            Ok::<_, anyhow::Error>(())
        };
        reach("default backend")?;
        first_instruction(space)?;
        policies(space, cni, &target)?;
        let watch = target.watch(&cluster)?;
        let rolled = roll(&cluster);
        let seen = watch.end();
        rolled?;
        seen?;
        println!("{cni}: an upgrade under traffic broke no connection");
        with_flags(&cluster, &[], &["--backend=nftables"], || reach("nftables"))?;
        deletion(space, &target)
    })?;
    cluster.stop()
}

/// Pods are called back when they announce their start.
fn first_instruction(space: &Space<'_>) -> Result<()> {
    let collector = Collector::start(space.cluster, &space.name)?;
    for n in 0..STARTS {
        space.create(&announcing(&format!("start-{n}"), &collector))?;
        judge(&collector.take(1, LIMIT)?)?;
    }
    println!("{STARTS} of {STARTS} pods were reached when their programs started");
    Ok(())
}

/// A `NetworkPolicy` that names the client holds at the mapped port, where the CNI enforces policies.
fn policies(space: &Space<'_>, cni: Cni, target: &Target) -> Result<()> {
    if cni != Cni::KubeRouter {
        println!("{cni} enforces no NetworkPolicies");
        return Ok(());
    }
    space.kubectl(&["label", "pod", "target", "app=target"])?;
    let policy = |name: &str, from: serde_json::Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": name },
            "spec": {
                "podSelector": { "matchLabels": { "app": "target" } },
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": from }],
            },
        })
    };
    // IPv4 alone: kube-router's policies for IPv6 do not hold, with and without us
    let port = target.endpoint(0, 0);
    // one policy after the other: kube-router may keep the addresses of a policy that is changed
    for (named, other) in [("node2", "client"), ("client", "node2")] {
        let [address, _] = space.cluster.addresses(named)?;
        let name = format!("only-{named}");
        let block = json!([{ "ipBlock": { "cidr": format!("{address}/32") } }]);
        space.create(&policy(&name, block))?;
        eventually(&format!("the policy {name} to hold"), || {
            for (host, passes) in [(named, true), (other, false)] {
                let answer = run_at(space.cluster, host, move || tcp(port))?;
                ensure!(answer.is_ok() == passes, "{host}: {answer:?}");
            }
            Ok(())
        })?;
        space.kubectl(&["delete", "networkpolicy", &name])?;
    }
    println!("{cni}: a NetworkPolicy sees the client's own address");
    Ok(())
}

/// The port of a deleted pod refuses.
fn deletion(space: &Space<'_>, target: &Target) -> Result<()> {
    let port = target.endpoint(0, 0);
    space.kubectl(&["delete", "pod", "target"])?;
    eventually("the deleted pod's port to refuse", || {
        let refused = is_refused(space.cluster, port)?;
        ensure!(refused, "{port} still answers");
        Ok(())
    })
    .context("after the deletion")
}
