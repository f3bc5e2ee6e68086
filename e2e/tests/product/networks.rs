//! What works with a CNI and a minor version of Kubernetes: the small suite, run by `e2e test --cni X` or
//! `e2e test --kubernetes X` on a cluster of its own. It prints which address the pod sees, and leaves a row
//! for `e2e compatibility`.

use std::env;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use e2e::compatibility::{self, Run, Small};
use e2e::starts::Collector;
use e2e::{Cluster, Cni, Config, Minor, install};
use nix::sys::utsname::uname;
use serde_json::json;

use crate::map_start::{announcing, judge};
use crate::reach::{Target, backends, vantages};
use crate::support::outside::{is_refused, run_at, tcp};
use crate::support::parts::{roll, with_flags};
use crate::support::space::Space;
use crate::support::{LIMIT, config, eventually};

/// The CNI of the cluster, as `--cni` takes it, and its Kubernetes, as `--kubernetes` does.
const CNI: &str = "E2E_CNI";
const KUBERNETES: &str = "E2E_KUBERNETES";
const STARTS: usize = 5;

#[test]
#[ignore = "a cluster per CNI: e2e test --cni X"]
fn small_suite() -> Result<()> {
    let cni = env::var(CNI).unwrap_or_else(|_| Cni::default().to_string());
    let cni = Cni::from_str(&cni, false).map_err(anyhow::Error::msg)?;
    let kubernetes: Minor = match env::var(KUBERNETES) {
        Ok(minor) => minor.parse()?,
        Err(_) => Minor::default(),
    };
    let config = Config {
        cni,
        kubernetes,
        ..config(&format!("cni-{cni}"))
    };
    let mut cluster = Cluster::start(&config)?;
    install::install(&mut cluster)?;
    Space::with(&cluster, "networks", |space| {
        let target = Target::create(space)?;
        let from = vantages(space, &target)?;
        let reach = |backend: &str| {
            let what = format!("{cni}, {backend}: every client to reach the pod");
            let (seen, other_address) = eventually(&what, || target.reached(&cluster, &from))?;
            println!("{cni}, {backend}: who reaches the pod, and which address it sees:\n{seen}");
            Ok::<_, anyhow::Error>(other_address)
        };
        let other_address = reach("default backend")?;
        let auto = match backends(&cluster)? {
            (true, false) => "iptables",
            (false, true) => "nftables",
            other => bail!("rules for iptables, for nftables: {other:?}"),
        };
        first_instruction(space)?;
        let policy = policies(space, cni, &target)?;
        let watch = target.watch(&cluster)?;
        let rolled = roll(&cluster);
        let seen = watch.end();
        rolled?;
        seen?;
        println!("{cni}: an upgrade under traffic broke no connection");
        let forced = (auto == "iptables").then_some("nftables");
        if forced.is_some() {
            with_flags(&cluster, &[], &["--backend=nftables"], || reach("nftables"))?;
        }
        deletion(space, &target)?;
        let release = uname()?.release().to_string_lossy().into_owned();
        compatibility::record(&Run::Small(Small {
            cni: cni.to_string(),
            kubernetes: kubernetes.version()?,
            proxy_mode: config.proxy_mode.to_string(),
            // without what a distribution adds
            kernel: release.split('-').next().unwrap_or_default().to_owned(),
            auto: auto.to_owned(),
            forced: forced.map(str::to_owned),
            other_address,
            policy: policy.to_owned(),
        }))
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

/// A `NetworkPolicy` that names the client holds at the mapped port, where the CNI enforces policies; returns
/// what it did.
fn policies(space: &Space<'_>, cni: Cni, target: &Target) -> Result<&'static str> {
    if cni != Cni::KubeRouter {
        return Ok("not enforced by the CNI");
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
        eventually(&format!("the policy {name} to end"), || {
            for port in [port, target.endpoint(1, 0)] {
                let answer = run_at(space.cluster, other, move || tcp(port))?;
                ensure!(answer.is_ok(), "{other} to {port}: {answer:?}");
            }
            Ok(())
        })?;
    }
    Ok("IPv4: passes the client it names, denies another")
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
