//! Are pods mapped where IPv6 is first or alone, and where names are as long as Kubernetes runs them?

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Config, Families, install};

use crate::support::outside::{Way, ask, is_refused};
use crate::support::pods::{entries, mapped_pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, MARK, config, eventually, get};

/// Names of nodes are labels too, so that they have at most 63 characters.
const NODE_NAME: usize = 63;
/// The kubelet makes a directory `NAMESPACE_NAME_UID`, which has at most 255.
const DIRECTORY_NAME: usize = 255;
const UID: usize = 36;
/// The longest name that the API server takes.
const POD_NAME: usize = 253;

#[test]
fn an_ipv6_cluster_with_long_names_maps_its_pods() -> Result<()> {
    maps_its_pods("ipv6-only", Families::V6Only)
}

#[test]
fn a_cluster_whose_first_family_is_ipv6_maps_its_pods_in_both() -> Result<()> {
    maps_its_pods("ipv6-first", Families::V6First)
}

fn maps_its_pods(name: &str, families: Families) -> Result<()> {
    let zone = ".rack-7.zone-a.region-1.example";
    let node = "node1".len();
    let mut cluster = Cluster::start(&Config {
        families,
        nodes: 1,
        node_suffix: format!("-{:x>1$}{zone}", "", NODE_NAME - node - 1 - zone.len()),
        ..config(name)
    })?;
    install::install(&mut cluster)?;
    Space::with(&cluster, name, |space| {
        let longest = DIRECTORY_NAME - UID - "__".len() - space.name.len();
        let pod_name = format!("{:a>1$}", ".web", longest);
        space.create(&mapped_pod(&pod_name))?;
        // the kubelet cannot run this one
        let unusable = format!("{:a>1$}", ".web", POD_NAME);
        space.create(&mapped_pod(&unusable))?;
        let pod = space.ready(&pod_name)?;
        let node = pod["spec"]["nodeName"].as_str().context("no node")?;
        ensure!(node.len() == NODE_NAME && node.contains('.'), "{node}");
        let entry = entries(&pod)?.remove(0);
        let first: IpAddr = entry.pod_ip.parse()?;
        ensure!(first.is_ipv6(), "the result has {first}");
        ensure!(pod["status"]["podIP"] == *entry.pod_ip, "{}", pod["status"]);
        ensure!(entry.pod_name == pod_name, "{entry:?}");
        let addresses = cluster.addresses("node1")?;
        let answering = if families == Families::V6Only {
            1..
        } else {
            0..
        };
        let mut endpoints = Vec::new();
        for address in &addresses[answering] {
            let endpoint = SocketAddr::new(address.parse()?, entry.host_port);
            let answer = ask(&cluster, Way::Http, endpoint)?;
            ensure!(pod_name.starts_with(&answer), "{endpoint}: {answer:?}");
            endpoints.push(endpoint);
        }
        // the address family that is not in use has no rule
        let ipv4 = SocketAddr::new(addresses[0].parse()?, entry.host_port);
        ensure!(
            families == Families::V6First || is_refused(&cluster, ipv4)?,
            "{ipv4} answers"
        );
        let mark = &space.pod(&unusable)?["metadata"]["annotations"][MARK];
        ensure!(mark.is_string(), "{mark}");
        let said = eventually("the event", || {
            let events = space.events(&pod_name)?;
            let mapped = events
                .into_iter()
                .find(|(reason, _)| reason == "PortsMapped");
            Ok(mapped.context("no PortsMapped")?.1)
        })?;
        ensure!(said.contains(&format!("[{}]:", addresses[1])), "{said}");
        space.kubectl(&["annotate", "pod", &pod_name, &format!("{ANNOTATION}-")])?;
        eventually("the port to refuse", || {
            for endpoint in &endpoints {
                ensure!(is_refused(&cluster, *endpoint)?, "{endpoint} still answers");
            }
            Ok(())
        })?;
        let nodes = get(&cluster, &["nodes"])?;
        println!("{name}: {}", nodes["items"][0]["status"]["addresses"]);
        Ok(())
    })?;
    cluster.stop()
}
