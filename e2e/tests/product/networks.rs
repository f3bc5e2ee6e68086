//! What works with a CNI and a minor version of Kubernetes: the small suite, run by `e2e test --cni X` or
//! `e2e test --kubernetes X` on a cluster of its own, with the backend that the enforcer chooses and then with
//! the other one. It prints which address the pod sees, and at its end the row that it leaves for
//! `e2e compatibility`.

use std::env;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use e2e::compatibility::{self, Run, Small};
use e2e::starts::Collector;
use e2e::{CiliumMode, Cluster, Cni, Config, Containerd, Minor, ProxyMode, install, paths};
use nix::sys::utsname::uname;
use serde_json::json;

use crate::map_start::{announcing, judge};
use crate::reach::{Target, Vantage, backends, vantages};
use crate::support::outside::{Way, is_refused, run_at, tcp};
use crate::support::parts::{add_capabilities, roll, with_flags};
use crate::support::pods::{entries, mapped_pod};
use crate::support::space::Space;
use crate::support::{LIMIT, config, eventually, get, kubectl_with};

/// The CNI of the cluster, as `--cni` takes it; its Kubernetes, as `--kubernetes` does; its container runtime,
/// as `--containerd` does; the mode of kube-proxy, as `--proxy-mode` does.
const CNI: &str = "E2E_CNI";
const KUBERNETES: &str = "E2E_KUBERNETES";
const CONTAINERD: &str = "E2E_CONTAINERD";
const PROXY_MODE: &str = "E2E_PROXY_MODE";
const STARTS: usize = 5;
/// Where the API server calls the webhook.
const WEBHOOK_PORT: u16 = 10250;

/// The version of Kubernetes that the environment names, or the newest.
pub(crate) fn kubernetes() -> Result<Minor> {
    match env::var(KUBERNETES) {
        Ok(minor) => minor.parse(),
        Err(_) => Ok(Minor::default()),
    }
}

#[test]
#[ignore = "a cluster per CNI: e2e test --cni X"]
fn small_suite() -> Result<()> {
    let cni = env::var(CNI).unwrap_or_else(|_| Cni::default().to_string());
    let cni = Cni::from_str(&cni, false).map_err(anyhow::Error::msg)?;
    let kubernetes = kubernetes()?;
    let containerd = env::var(CONTAINERD).unwrap_or_else(|_| Containerd::default().to_string());
    let containerd = Containerd::from_str(&containerd, false).map_err(anyhow::Error::msg)?;
    let proxy_mode = env::var(PROXY_MODE).unwrap_or_else(|_| ProxyMode::default().to_string());
    let proxy_mode = ProxyMode::from_str(&proxy_mode, false).map_err(anyhow::Error::msg)?;
    let config = Config {
        cni,
        proxy_mode,
        kubernetes,
        containerd,
        ..config(&format!("cni-{cni}").replace(':', "-"))
    };
    let mut cluster = Cluster::start(&config)?;
    install::install(&mut cluster)?;
    let nodes = get(&cluster, &["nodes"])?;
    let runtime = &nodes["items"][0]["status"]["nodeInfo"]["containerRuntimeVersion"];
    let runtime = runtime.as_str().unwrap_or_default();
    let wanted = format!("containerd://{containerd}.");
    ensure!(runtime.starts_with(&wanted), "{runtime}, not {wanted}");
    // without what its build adds
    let version = runtime
        .trim_start_matches("containerd://")
        .split('+')
        .next();
    let version = version.unwrap_or_default();
    Space::with(&cluster, "networks", |space| {
        let target = Target::create(space)?;
        let from = vantages(space, &target)?;
        let auto = carrying(&cluster)?;
        let suite = |backend| with_backend(space, cni, backend, &target, &from);
        let (other_address, policy) = suite(auto)?;
        let forced = if auto == "iptables" {
            with_flags(&cluster, &[], &["--backend=nftables"], || suite("nftables"))?;
            "nftables"
        } else {
            // its programs print what other programs' rules name only with NET_RAW
            add_capabilities(&cluster, &["NET_ADMIN", "NET_RAW"])?;
            with_flags(&cluster, &[], &["--backend=iptables"], || suite("iptables"))?;
            add_capabilities(&cluster, &["NET_ADMIN"])?;
            "iptables with NET_RAW"
        };
        if policy != NOT_ENFORCED {
            own_policy(space)?;
        }
        let release = uname()?.release().to_string_lossy().into_owned();
        let row = Small {
            cni: cni.to_string(),
            kubernetes: kubernetes.version()?,
            containerd: version.to_owned(),
            proxy_mode: if cni.replaces_kube_proxy() {
                "replaced by the CNI".to_owned()
            } else {
                config.proxy_mode.to_string()
            },
            // without what a distribution adds
            kernel: release.split('-').next().unwrap_or_default().to_owned(),
            auto: auto.to_owned(),
            forced: Some(forced.to_owned()),
            other_address,
            policy,
        };
        println!("its row of docs/compatibility.md:\n{}", row.row());
        compatibility::record(&Run::Small(row))
    })?;
    cluster.stop()
}

/// All of the suite that depends on the backend. Returns the clients whose own address the pod does not see, and
/// what a policy that names a client did to it.
fn with_backend(
    space: &Space<'_>,
    cni: Cni,
    backend: &str,
    target: &Target,
    from: &[Vantage],
) -> Result<(Vec<String>, String)> {
    let cluster = space.cluster;
    println!("{cni}, {backend}:");
    eventually(&format!("{backend} to carry the mappings"), || {
        let found = carrying(cluster)?;
        ensure!(found == backend, "{found} carries them");
        Ok(())
    })?;
    let (seen, other_address) = eventually("every client to reach the pod", || {
        target.reached(cluster, from)
    })?;
    println!("who reaches the pod, and which address it sees:\n{seen}");
    first_instruction(space, backend)?;
    let policy = policies(space, cni, target)?;
    println!("a NetworkPolicy that names the client: {policy}");
    let watch = target.watch(cluster)?;
    let rolled = roll(cluster);
    let seen = watch.end();
    rolled?;
    seen?;
    println!("an upgrade under traffic broke no connection");
    deletion(space, backend)?;
    Ok((other_address, policy))
}

/// The backend that alone has rules of ours.
fn carrying(cluster: &Cluster) -> Result<&'static str> {
    match backends(cluster)? {
        (true, false) => Ok("iptables"),
        (false, true) => Ok("nftables"),
        other => bail!("rules for iptables, for nftables: {other:?}"),
    }
}

/// Pods are called back when they announce their start.
fn first_instruction(space: &Space<'_>, backend: &str) -> Result<()> {
    let collector = Collector::start(space.cluster, &space.name)?;
    for n in 0..STARTS {
        space.create(&announcing(&format!("start-{backend}-{n}"), &collector))?;
        judge(&collector.take(1, LIMIT)?)?;
    }
    println!("{STARTS} of {STARTS} pods were reached when their programs started");
    Ok(())
}

/// What a policy that names a client did to it, and what a policy that names another client.
const NAMED: &str = "passes the client it names, denies another";
const DENIED: &str = "denies the client it names";
const NOT_ENFORCED: &str = "not enforced by the CNI";

/// A `NetworkPolicy` that names the client holds at the mapped port, where the CNI enforces policies; returns
/// what it did.
fn policies(space: &Space<'_>, cni: Cni, target: &Target) -> Result<String> {
    // kube-router's policies for IPv6 do not hold, with and without us
    let (families, other, passes): (&[usize], _, _) = match cni {
        Cni::Bridge | Cni::Flannel => return Ok(NOT_ENFORCED.to_owned()),
        Cni::KubeRouter => (&[0], "node2", true),
        // masqueraded
        Cni::Cilium(CiliumMode::B | CiliumMode::D) => (&[0, 1], "client", false),
        Cni::Cilium(_) => (&[0, 1], "client", true),
    };
    space.kubectl(&["label", "pod", "target", "app=target"])?;
    let client = space.cluster.addresses("client")?;
    let elsewhere = match other {
        // Cilium takes no node for an ipBlock: this policy names an address of none
        "client" => ["198.51.100.1", "2001:db8::1"].map(str::to_owned),
        node => space.cluster.addresses(node)?,
    };
    // one policy after the other: kube-router may keep the addresses of a policy that is changed
    for (name, named, passes) in [("other", elsewhere, false), ("client", client, passes)] {
        let blocks: Vec<_> = named
            .iter()
            .zip([32, 128])
            .map(
                |(address, length)| json!({ "ipBlock": { "cidr": format!("{address}/{length}") } }),
            )
            .collect();
        space.create(&json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": { "name": name },
            "spec": {
                "podSelector": { "matchLabels": { "app": "target" } },
                "policyTypes": ["Ingress"],
                "ingress": [{ "from": blocks }],
            },
        }))?;
        let reaches = |from: &'static str, families: &[usize], wanted: bool| {
            for family in families {
                let port = target.endpoint(*family, 0);
                let answer = run_at(space.cluster, from, move || tcp(port))?;
                ensure!(answer.is_ok() == wanted, "{from} to {port}: {answer:?}");
            }
            Ok(())
        };
        eventually(&format!("the policy {name} to hold"), || {
            reaches("client", families, passes)?;
            if other == "client" {
                return Ok(());
            }
            reaches(other, families, name == "other")
        })?;
        space.kubectl(&["delete", "networkpolicy", name])?;
        eventually(&format!("the policy {name} to end"), || {
            reaches("client", &[0, 1], true)?;
            reaches("node2", &[0, 1], true)
        })?;
    }
    let which = if families.len() == 2 { "" } else { "IPv4: " };
    Ok(format!("{which}{}", if passes { NAMED } else { DENIED }))
}

/// The `NetworkPolicy` of the product lets the API server through where another one denies everything.
fn own_policy(space: &Space<'_>) -> Result<()> {
    let cluster = space.cluster;
    let system = ["-n", install::NAMESPACE];
    let webhook = "app.kubernetes.io/component=webhook";
    let pods = get(cluster, &[&system[..], &["pods", "-l", webhook]].concat())?;
    let address: IpAddr = pods["items"][0]["status"]["podIP"]
        .as_str()
        .context("the webhook's pod has no address")?
        .parse()?;
    let answers = |wanted: bool| {
        let port = SocketAddr::new(address, WEBHOOK_PORT);
        let connected = run_at(cluster, "control-plane", move || {
            TcpStream::connect_timeout(&port, Duration::from_secs(2)).map(drop)
        })?;
        ensure!(connected.is_ok() == wanted, "{port}: {connected:?}");
        Ok(())
    };
    eventually("the webhook to answer", || answers(true))?;
    let deny = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": "deny", "namespace": install::NAMESPACE },
        "spec": { "podSelector": {}, "policyTypes": ["Ingress"] },
    });
    let create = ["create", "-f", "-"];
    let (created, reply) = kubectl_with(cluster, &create, &deny.to_string())?;
    ensure!(created, "{reply}");
    eventually("all connections to be denied", || answers(false))?;
    let ours = paths::manifests().join("components/network-policy/network-policy.yaml");
    cluster.kubectl_run([Path::new("apply"), Path::new("-f"), &ours])?;
    eventually("the product's own policy to hold", || answers(true))?;
    space.create(&mapped_pod("under-policies"))?;
    space.ready("under-policies")?;
    let delete = ["delete", "networkpolicy", "deny", "webhook"];
    cluster.kubectl_run([&system[..], &delete].concat())?;
    println!("the product's own NetworkPolicy holds where all else is denied");
    Ok(())
}

/// The port of a deleted pod refuses.
fn deletion(space: &Space<'_>, backend: &str) -> Result<()> {
    let name = format!("deleted-{backend}");
    space.create(&mapped_pod(&name))?;
    let pod = space.ready(&name)?;
    let entry = entries(&pod)?.remove(0);
    space.answers(&pod, &entry, Way::Http)?;
    let port = space.endpoint(&pod, &entry)?;
    space.kubectl(&["delete", "pod", &name])?;
    eventually("the deleted pod's port to refuse", || {
        let refused = is_refused(space.cluster, port)?;
        ensure!(refused, "{port} still answers");
        Ok(())
    })
    .context("after the deletion")
}
