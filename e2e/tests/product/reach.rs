//! Who reaches a host port, and which address the pod sees: with kube-proxy in either mode, with and without
//! iptables on bridged packets, with either backend, and during a migration between them.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use e2e::cluster::config::ProxyMode;
use e2e::{Cluster, Config, install};
use serde_json::{Value, json};

use crate::support::outside::{at, run_at, run_beside, tcp, udp};
use crate::support::parts::with_flags;
use crate::support::pods::{annotated, entries, is_true, on_node, pod};
use crate::support::space::Space;
use crate::support::streams::{follow, knock};
use crate::support::{config, eventually};

const NODE: &str = "node1";
const OTHER_NODE: &str = "node2";
/// What a pod sees of a neighbour, or of itself, whose address would send the answer past the node:
/// the bridge's address.
const BRIDGE: [&str; 2] = ["10.244.1.1", "fd00:244:0:1::1"];
/// Ports of the target: two that answer, and some more to be moved.
const PORTS: u16 = 40;

#[test]
fn every_client_reaches_host_ports_with_kube_proxy_with_iptables() -> Result<()> {
    every_client_reaches_host_ports(ProxyMode::Iptables)
}

#[test]
fn every_client_reaches_host_ports_with_kube_proxy_with_nftables() -> Result<()> {
    every_client_reaches_host_ports(ProxyMode::Nftables)
}

fn every_client_reaches_host_ports(proxy_mode: ProxyMode) -> Result<()> {
    let mut cluster = Cluster::start(&Config {
        proxy_mode,
        ..config(&format!("reach-{proxy_mode}"))
    })?;
    install::install(&mut cluster)?;
    Space::with(&cluster, "reach", |space| {
        let target = Target::create(space)?;
        let from = vantages(space, &target)?;
        let both = |backend: &str| {
            for bridge_nf in [true, false] {
                set_bridge_nf(&cluster, bridge_nf)?;
                let what = format!("{proxy_mode} kube-proxy, {backend}, bridge-nf {bridge_nf}");
                // the enforcer checks the node every few seconds
                eventually(&what, || target.matrix(&cluster, &from, bridge_nf))?;
                println!("{what}: {} clients as expected", from.len());
            }
            set_bridge_nf(&cluster, true)
        };
        both("iptables")?;
        ensure!(
            backends(&cluster)? == (true, false),
            "it is not iptables that carries the mappings"
        );
        let watch = target.watch(&cluster)?;
        let moved = with_flags(&cluster, &[], &["--backend=nftables"], || {
            ensure!(
                backends(&cluster)? == (false, true),
                "not all has moved to nftables"
            );
            both("nftables")
        })
        .and_then(|()| {
            ensure!(
                backends(&cluster)? == (false, true),
                "the backend that works did not stay"
            );
            with_flags(&cluster, &[], &["--backend=iptables"], || {
                ensure!(
                    backends(&cluster)? == (true, false),
                    "not all has moved back to iptables"
                );
                both("iptables again")
            })
        });
        let seen = watch.end();
        moved?;
        seen?;
        ensure!(
            entries(&space.pod("target")?)? == target.entries,
            "the mapping changed"
        );
        Ok(())
    })?;
    cluster.stop()
}

/// Whether a node has rules of ours for iptables, and for nftables.
pub(crate) fn backends(cluster: &Cluster) -> Result<(bool, bool)> {
    let says = |command: &[&str]| -> Result<String> {
        let output = cluster.exec(NODE, command)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    Ok((
        says(&["iptables-save"])?.contains("PORTMAPPING"),
        says(&["nft", "list", "tables"])?.contains("portmapping"),
    ))
}

/// Both families, for every network namespace of its own.
fn set_bridge_nf(cluster: &Cluster, on: bool) -> Result<()> {
    run_at(cluster, NODE, move || {
        for table in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{table}");
            fs::write(&path, if on { "1" } else { "0" }).with_context(|| format!("set {path}"))?;
        }
        Ok(())
    })?
}

/// Where a client connects from, and which address the pod must see, by family; with and without iptables on
/// bridged packets.
pub(crate) struct Vantage {
    name: &'static str,
    place: Place,
    seen: [[String; 2]; 2],
    own: [String; 2],
}

#[derive(Clone, Copy)]
enum Place {
    Host(&'static str),
    Process(u32),
}

pub(crate) fn vantages(space: &Space<'_>, target: &Target) -> Result<Vec<Vantage>> {
    let vantage = |name, place, own: &[String; 2], past_the_bridge: [String; 2]| Vantage {
        name,
        place,
        seen: [own.clone(), past_the_bridge],
        own: own.clone(),
    };
    let bridge = BRIDGE.map(str::to_owned);
    let mut all = Vec::new();
    for (name, host) in [
        ("client outside", "client"),
        ("another node", OTHER_NODE),
        ("the node itself", NODE),
    ] {
        let own = space.cluster.addresses(host)?;
        all.push(vantage(name, Place::Host(host), &own, own.clone()));
    }
    for (name, pod, node, neighbour) in [
        ("a pod on another node", "remote", OTHER_NODE, false),
        ("a pod on the same node", "neighbour", NODE, true),
    ] {
        // the port identifies the process
        let port = if neighbour { "9101" } else { "9102" };
        space.create(&on_node(
            crate::support::pods::pod(pod, &["--tcp", port], &json!([])),
            node,
        ))?;
        let ready = eventually(&format!("pod {pod} to be Ready"), || {
            let pod = space.pod(pod)?;
            ensure!(is_true(&pod, "Ready"), "{}", pod["status"]);
            Ok(pod)
        })?;
        let own = addresses(&ready)?;
        let past = if neighbour {
            bridge.clone()
        } else {
            own.clone()
        };
        let place = Place::Process(process(space.cluster, node, port)?);
        all.push(vantage(name, place, &own, past));
    }
    all.push(Vantage {
        name: "the pod itself",
        place: Place::Process(process(space.cluster, NODE, "9040")?),
        seen: [bridge.clone(), bridge],
        own: addresses(&space.pod(target.name)?)?,
    });
    ensure!(target.name == "target", "the target is asked by its name");
    Ok(all)
}

/// The pod's addresses, IPv4 first.
fn addresses(pod: &Value) -> Result<[String; 2]> {
    let all = pod["status"]["podIPs"].as_array().context("no podIPs")?;
    let all: Vec<String> = all
        .iter()
        .filter_map(|address| address["ip"].as_str().map(str::to_owned))
        .collect();
    all.try_into()
        .ok()
        .context("the pod has not an address of each family")
}

/// The process on a node that has this port among its arguments.
fn process(cluster: &Cluster, node: &str, port: &str) -> Result<u32> {
    let found = cluster
        .processes(node)?
        .into_iter()
        .find(|process| process.arguments.iter().skip(1).any(|word| word == port));
    Ok(found
        .with_context(|| format!("no process with port {port} on {node}"))?
        .pid)
}

/// The target pod: it answers with the client's address at its first two ports, and streams at its third.
pub(crate) struct Target {
    name: &'static str,
    entries: Vec<crate::support::pods::MappedPort>,
    node: [IpAddr; 2],
}

impl Target {
    pub(crate) fn create(space: &Space<'_>) -> Result<Self> {
        let mut ports = vec![
            json!({ "containerPort": 9040 }),
            json!({ "containerPort": 9040, "protocol": "UDP" }),
        ];
        ports.extend((9041..9040 + PORTS).map(|port| json!({ "containerPort": port })));
        let server = pod(
            "target",
            &["--whom", "9040", "--stream", "9041"],
            &json!(ports),
        );
        space.create(&on_node(annotated(server, ""), NODE))?;
        let [v4, v6] = space.cluster.addresses(NODE)?;
        Ok(Self {
            name: "target",
            entries: entries(&space.ready("target")?)?,
            node: [v4.parse()?, v6.parse()?],
        })
    }

    pub(crate) fn endpoint(&self, family: usize, entry: usize) -> SocketAddr {
        SocketAddr::new(self.node[family], self.entries[entry].host_port)
    }

    /// Asks from every place, by TCP and UDP, in both families; returns a row per place with the addresses
    /// that the pod saw, and the places whose own address it did not see.
    pub(crate) fn reached(
        &self,
        cluster: &Cluster,
        from: &[Vantage],
    ) -> Result<(String, Vec<String>)> {
        let mut rows = Vec::new();
        let mut wrong = Vec::new();
        let mut other_address = Vec::new();
        for vantage in from {
            let mut row = format!("| {}", vantage.name);
            let mut own = true;
            for family in [0, 1] {
                for (how, answer) in ["TCP", "UDP"]
                    .iter()
                    .zip(self.ask(cluster, vantage, family)?)
                {
                    match answer.as_ref().map(|text| text.split_once(' ')) {
                        Ok(Some((name, seen))) if name == self.name => {
                            row.extend([" | ", seen]);
                            own &= seen == vantage.own[family];
                        }
                        other => wrong.push(format!("{}, {how}: {other:?}", vantage.name)),
                    }
                }
            }
            rows.push(row + " |");
            if !own {
                other_address.push(vantage.name.to_owned());
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok((rows.join("\n"), other_address))
    }

    /// The answers by TCP and by UDP.
    fn ask(
        &self,
        cluster: &Cluster,
        vantage: &Vantage,
        family: usize,
    ) -> Result<[Result<String, String>; 2]> {
        let (by_tcp, by_udp) = (self.endpoint(family, 0), self.endpoint(family, 1));
        let ask =
            move || [tcp(by_tcp), udp(by_udp)].map(|answer| answer.map_err(|e| format!("{e:#}")));
        match vantage.place {
            Place::Host(host) => run_at(cluster, host, ask),
            Place::Process(pid) => run_beside(pid, ask),
        }
    }

    /// Asks from every place, by TCP and UDP, in both families; returns every wrong row.
    fn matrix(&self, cluster: &Cluster, from: &[Vantage], bridge_nf: bool) -> Result<()> {
        let mut wrong = Vec::new();
        for vantage in from {
            for family in [0, 1] {
                let expected = &vantage.seen[usize::from(!bridge_nf)][family];
                let expected = format!("{} {expected}", self.name);
                let by_tcp = self.endpoint(family, 0);
                let answers = self.ask(cluster, vantage, family)?;
                for (how, answer) in ["TCP", "UDP"].iter().zip(answers) {
                    if answer.as_ref() != Ok(&expected) {
                        let name = vantage.name;
                        wrong.push(format!(
                            "{name}, {how}, {by_tcp}: {answer:?}, not {expected:?}"
                        ));
                    }
                }
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    /// Connections from outside that stay open, and new ones all the time.
    pub(crate) fn watch(&self, cluster: &Cluster) -> Result<Watch> {
        let stop = Arc::new(AtomicBool::new(false));
        let (first, second) = (Arc::clone(&stop), Arc::clone(&stop));
        let streams = self.endpoint(0, 2);
        let doors = [self.endpoint(0, 0), self.endpoint(1, 0)];
        let name = self.name;
        Ok(Watch {
            follower: at(cluster, "client", move || follow(streams, &first))?,
            knocker: at(cluster, "client", move || knock(&doors, name, &second))?,
            stop,
        })
    }
}

pub(crate) struct Watch {
    follower: std::thread::JoinHandle<Result<Result<u64>>>,
    knocker: std::thread::JoinHandle<Result<crate::support::streams::Knocks>>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    pub(crate) fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let lines = self
            .follower
            .join()
            .ok()
            .context("the reader panicked")???;
        let knocks = self.knocker.join().ok().context("the knocker panicked")??;
        println!(
            "while the mappings moved twice: {lines} lines without a gap; {} new connections, \
             the slowest answered in {:?}, at most {:?} from one to the next",
            knocks.made, knocks.slowest, knocks.gap
        );
        ensure!(
            knocks.failed.is_empty(),
            "new connections failed: {:#?}",
            knocks.failed
        );
        ensure!(
            lines > 100 && knocks.made > 100,
            "nothing was proven: {lines} lines, {} connections",
            knocks.made
        );
        Ok(())
    }
}
