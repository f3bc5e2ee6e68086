//! What does a user see where the replies of a pod leave the node past netfilter?
//!
//! It takes minutes, so it runs by command: `cargo test -p e2e --test product reach_replies -- --ignored`

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use serde_json::json;

use crate::support::outside::{Way, run_at, run_beside};
use crate::support::parts::with_flags;
use crate::support::pods::{annotated, entries, is_true, on_node, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, alone, eventually};

const NODE: &str = "node1";
/// A port that no pod of another test listens at.
const PORT: u16 = 9077;
const METRICS: &str = "127.0.0.1:9464";

#[test]
#[ignore = "minutes; by command"]
fn a_port_that_gets_no_replies_is_named_and_masquerading_cures_it() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "reach-replies", |space| {
            let ports = json!([{ "containerPort": PORT }]);
            let silent = pod("silent", &["--tcp", &PORT.to_string()], &ports);
            space.create(&annotated(on_node(silent, NODE), ""))?;
            let silent = space.ready("silent")?;
            let entry = entries(&silent)?.remove(0);
            let endpoint = space.endpoint(&silent, &entry)?;
            // a call before this would be an answered flow for two minutes
            send_replies_elsewhere(cluster)?;
            let listen = format!("--metrics-listen={METRICS}");
            with_flags(cluster, &[], &[&listen], || {
                eventually("an event that names the port", || {
                    for host in ["client", "node2"] {
                        let answered = run_at(cluster, host, move || {
                            TcpStream::connect_timeout(&endpoint, Duration::from_millis(300))
                                .is_ok()
                        })?;
                        ensure!(!answered, "{endpoint} still answers {host}");
                    }
                    let events = space.events("silent")?;
                    let named = |(reason, note): &(String, String)| {
                        reason == "NoReplies" && note.contains(&entry.host_port.to_string())
                    };
                    ensure!(events.iter().any(named), "{events:?}");
                    Ok(())
                })?;
                let unanswered = run_at(cluster, NODE, unanswered)??;
                ensure!(unanswered >= 2, "{unanswered} flows without a reply");
                Ok(())
            })?;
            // shown alone: a NetworkPolicy looks the same
            ensure!(is_true(&space.pod("silent")?, ANNOTATION), "it is unmapped");
            with_flags(cluster, &[], &["--masquerade=always"], || {
                eventually("the port to answer", || {
                    space.answers(&silent, &entry, Way::Tcp)
                })
            })
        })
    })
}

/// Gives the pod another interface, by which its replies to nodes and clients leave.
fn send_replies_elsewhere(cluster: &Cluster) -> Result<()> {
    let program = ["/echo", "--tcp", &PORT.to_string()];
    let pids = cluster.processes_running(NODE, &program)?;
    run_beside(*pids.first().context("no process of the pod")?, || {
        // otherwise the pod drops what comes by the usual one
        for interface in ["all", "eth0"] {
            let path = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
            fs::write(&path, "0").with_context(|| format!("set {path}"))?;
        }
        for command in [
            "link add out type veth peer name nowhere",
            "link set nowhere up",
            "link set out up",
            "route add 10.240.0.0/24 dev out",
        ] {
            let output = Command::new("ip").args(command.split(' ')).output()?;
            if !output.status.success() {
                bail!("ip {command}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    })?
}

/// Reads the metric of the enforcer on this node.
fn unanswered() -> Result<u64> {
    let address: SocketAddr = METRICS.parse()?;
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: enforcer\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix("portmapping_flows_unanswered "));
    let value = value.with_context(|| format!("the metric is missing: {text}"))?;
    value.parse().context("the metric is no number")
}
