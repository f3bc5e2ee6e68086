//! At which addresses of a node does a host port answer? At the node's own; Services keep theirs.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
use serde_json::json;

use crate::support::outside::{Way, ask, run_at, tcp};
use crate::support::pods::{annotated, condition, entries, on_node, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, eventually, node_addresses, shared};

/// An external address of a Service that is local to a node, as load balancers make it.
const EXTERNAL: &str = "198.51.100.7";
/// An address that the Node object names only later.
const LATER: &str = "198.51.100.8";

/// A pod that answers TCP on 9040 with its name.
fn answering(name: &str, node: &str) -> serde_json::Value {
    let ports = json!([{ "containerPort": 9040 }]);
    on_node(pod(name, &["--tcp", "9040"], &ports), node)
}

/// Makes an address local to the node, and routes the client to it.
fn make_local(cluster: &Cluster, address: &str, node: &str, gateway: &str) -> Result<()> {
    for (host, command) in [
        (node, ["ip", "address", "replace", address, "dev", "lo"]),
        (
            "client",
            ["ip", "route", "replace", address, "via", gateway],
        ),
    ] {
        let output = cluster.exec(host, &command)?;
        ensure!(output.status.success(), "{command:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn a_service_whose_address_is_local_to_the_node_keeps_its_traffic() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "reach-service", |space| {
            let addresses = node_addresses(cluster)?;
            let (node, address) = addresses.first_key_value().context("no node")?;
            let mut backend = answering("backend", node);
            backend["metadata"]["labels"] = json!({ "app": "backend" });
            space.create(&backend)?;
            space.create(&annotated(answering("mapped", node), ""))?;
            let mapped = space.ready("mapped")?;
            let entry = entries(&mapped)?.remove(0);
            make_local(cluster, EXTERNAL, node, address)?;
            space.create(&json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": "external" },
                "spec": {
                    "selector": { "app": "backend" },
                    "externalIPs": [EXTERNAL],
                    "ports": [{ "port": entry.host_port, "targetPort": 9040 }],
                },
            }))?;
            let service = SocketAddr::new(EXTERNAL.parse::<IpAddr>()?, entry.host_port);
            eventually("the Service to answer its clients", || {
                let answer = ask(cluster, Way::Tcp, service)?;
                ensure!(answer == "backend", "{service} answered {answer:?} outside");
                let answer = run_at(cluster, node, move || tcp(service))??;
                ensure!(
                    answer == "backend",
                    "{service} answered {answer:?} on {node}"
                );
                Ok(())
            })?;
            space.answers(&mapped, &entry, Way::Tcp)?;
            refused_at_loopback(cluster, node, entry.host_port)
        })
    })
}

/// A program on the node that tries loopback learns at once that nothing answers there.
fn refused_at_loopback(cluster: &Cluster, node: &str, port: u16) -> Result<()> {
    for loopback in ["127.0.0.1", "::1"] {
        let at = SocketAddr::new(loopback.parse()?, port);
        let patience = Duration::from_secs(5);
        let connected = run_at(cluster, node, move || {
            TcpStream::connect_timeout(&at, patience).map(drop)
        })?;
        let refused = connected.err().map(|error| error.kind());
        ensure!(
            refused == Some(std::io::ErrorKind::ConnectionRefused),
            "{at}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_host_ip_that_is_not_on_the_node_is_refused_until_it_is() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "reach-host-ip", |space| {
            let addresses = node_addresses(cluster)?;
            let (node, address) = addresses.first_key_value().context("no node")?;
            let request = format!(r#"[{{"containerPort":9040,"hostIP":"{LATER}"}}]"#);
            space.create(&annotated(answering("later", node), &request))?;
            eventually("the condition to say where the hostIP is not", || {
                let pod = space.pod("later")?;
                let condition = condition(&pod, ANNOTATION).context("no condition")?;
                let message = condition["message"].as_str().unwrap_or_default();
                ensure!(
                    condition["status"] == "False" && condition["reason"] == "HostIPNotOnNode",
                    "{condition}"
                );
                ensure!(
                    message.contains(LATER) && message.contains(address.as_str()),
                    "{message}"
                );
                Ok(())
            })?;
            make_local(cluster, LATER, node, address)?;
            let named = json!([{
                "op": "add",
                "path": "/status/addresses/-",
                "value": { "type": "ExternalIP", "address": LATER },
            }]);
            eventually("the pod to be mapped once the node has the address", || {
                // the kubelet takes the address away again; naming it twice is refused
                let patch = [
                    "patch",
                    "node",
                    node,
                    "--subresource=status",
                    "--type=json",
                    "-p",
                ];
                let _ = cluster.kubectl_run([&patch[..], &[&named.to_string()]].concat());
                let pod = space.pod("later")?;
                let entry = entries(&pod)?.remove(0);
                ensure!(entry.host_ip == LATER, "{entry:?}");
                let endpoint = SocketAddr::new(LATER.parse()?, entry.host_port);
                let answer = ask(cluster, Way::Tcp, endpoint)?;
                ensure!(answer == "later", "{endpoint} answered {answer:?}");
                Ok(())
            })
        })
    })
}
