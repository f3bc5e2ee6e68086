//! Do rules that another program flushes come back?

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
use serde_json::json;

use crate::reach::backends;
use crate::support::load::Changes;
use crate::support::outside::{Way, at};
use crate::support::parts::with_flags;
use crate::support::pods::{MappedPort, annotated, entries, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{alone, eventually, first_node};

#[test]
fn flushed_rules_come_back() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-flush", |space| {
            let node = first_node(cluster)?;
            space.create(&on_node(mapped_pod("web"), &node))?;
            let web = space.ready("web")?;
            let entry: MappedPort = entries(&web)?.remove(0);
            let flush = cluster.exec(&node, &["iptables", "-t", "nat", "-F", "PORTMAPPING"])?;
            ensure!(flush.status.success(), "{flush:?}");
            eventually("the mapping to be repaired", || {
                space.answers(&web, &entry, Way::Http)
            })?;
            eventually("the event about it", || {
                let events = space.events("web")?;
                ensure!(
                    events.iter().any(|(reason, _)| reason == "MappingRepaired"),
                    "{events:?}"
                );
                Ok(())
            })
        })
    })
}

/// Each change of the rules makes a read of them that is under way useless.
#[test]
fn flushed_rules_come_back_while_a_user_changes_mappings_without_a_pause() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-changes", |space| {
            let node = first_node(cluster)?;
            space.create(&on_node(mapped_pod("web"), &node))?;
            space.create(&on_node(mapped_pod("busy"), &node))?;
            let web = space.ready("web")?;
            space.ready("busy")?;
            let entry: MappedPort = entries(&web)?.remove(0);
            let values = [9040, 9041].map(|port| format!(r#"[{{"containerPort":{port}}}]"#));
            let changes = Changes::start(cluster, &space.name, "busy", values)?;
            let flush = cluster.exec(&node, &["iptables", "-t", "nat", "-F", "PORTMAPPING"]);
            let repaired = eventually("the mapping to be repaired", || {
                space.answers(&web, &entry, Way::Http)
            });
            let per_second = changes.end()?;
            let flush = flush?;
            ensure!(flush.status.success(), "{flush:?}");
            // as many as the machine makes; core has a test in which changes leave a read no time at all
            ensure!(per_second > 3, "{per_second} changes a second");
            repaired
        })
    })
}

/// Removes the jump to our rules, and nothing of others.
const CUT: &str = "iptables -t nat -L PREROUTING -n --line-numbers | \
                   awk '/PORTMAPPING/ { print $1 }' | xargs iptables -t nat -D PREROUTING";
/// More clients than begin to send before and after the damage is there.
const CLIENTS: u64 = 400;
const APART: Duration = Duration::from_micros(1500);
const PATIENCE: Duration = Duration::from_secs(20);

/// The kernel keeps the way of a client's first datagram as long as it goes on sending.
#[test]
fn clients_that_begin_while_rules_are_damaged_are_answered() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-early", |space| {
            let node = first_node(cluster)?;
            let ports = json!([{ "containerPort": 9041, "protocol": "UDP" }]);
            let server = pod("web", &["--udp", "9041"], &ports);
            space.create(&on_node(annotated(server, ""), &node))?;
            let web = space.ready("web")?;
            let entry: MappedPort = entries(&web)?.remove(0);
            space.answers(&web, &entry, Way::Udp)?;
            let to = space.endpoint(&web, &entry)?;
            let clients = at(cluster, "client", move || unanswered(to))?;
            thread::sleep(APART * 100);
            let cut = cluster.exec(&node, &["sh", "-ec", CUT])?;
            ensure!(cut.status.success(), "{cut:?}");
            let unanswered = clients.join().ok().context("the clients panicked")???;
            ensure!(unanswered == 0, "{unanswered} of {CLIENTS} clients");
            Ok(())
        })
    })
}

/// Clients begin to send one after the other, and go on until they have an answer; how many get none.
fn unanswered(to: SocketAddr) -> Result<usize> {
    let mut waiting = Vec::new();
    for _ in 0..CLIENTS {
        let client = UdpSocket::bind("0.0.0.0:0")?;
        client.connect(to)?;
        client.set_nonblocking(true)?;
        client.send(b"who are you?\n")?;
        waiting.push(client);
        thread::sleep(APART);
    }
    let begun = Instant::now();
    while !waiting.is_empty() && begun.elapsed() < PATIENCE {
        waiting.retain(|client| client.recv(&mut [0; 64]).is_err());
        for client in &waiting {
            client.send(b"who are you?\n")?;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(waiting.len())
}

/// More than a test may take: only what the kernel announces can tell the enforcer of damage.
const NO_CHECK: &str = "--check-every=600s";
/// The enforcer reads the rules once more a second after its start. The second damage comes later than that.
const TIMES: usize = 2;

/// iptables-legacy announces nothing; there the periodic check alone finds damage.
#[test]
fn damage_is_repaired_without_the_periodic_check_where_the_kernel_announces_it() -> Result<()> {
    alone(|cluster| {
        let damage = ["nft", "delete", "table", "inet", "portmapping"];
        repaired_without_check(cluster, "nftables", (false, true), &damage)?;
        // the other tests of this cluster find iptables, because a backend with rules of ours is kept
        let damage = ["iptables-nft", "-t", "nat", "-F", "PORTMAPPING"];
        repaired_without_check(cluster, "iptables", (true, false), &damage)
    })
}

/// `has` says for which backends, iptables and nftables, a node then has rules of ours.
fn repaired_without_check(
    cluster: &Cluster,
    backend: &str,
    has: (bool, bool),
    damage: &[&str],
) -> Result<()> {
    let flags = [&format!("--backend={backend}"), NO_CHECK];
    with_flags(cluster, &[], &flags, || {
        Space::with(cluster, &format!("survive-{backend}"), |space| {
            let node = first_node(cluster)?;
            space.create(&on_node(mapped_pod("web"), &node))?;
            let web = space.ready("web")?;
            let entry: MappedPort = entries(&web)?.remove(0);
            space.answers(&web, &entry, Way::Http)?;
            ensure!(backends(cluster)? == has, "not {backend}");
            for time in 1..=TIMES {
                let damaged = cluster.exec(&node, damage)?;
                ensure!(damaged.status.success(), "{damaged:?}");
                eventually(&format!("repair {time}"), || {
                    space.answers(&web, &entry, Way::Http)
                })?;
            }
            eventually("the event about it", || {
                let events = space.events("web")?;
                let reported = events.iter().any(|(reason, _)| reason == "MappingRepaired");
                ensure!(reported, "{events:?}");
                Ok(())
            })
        })
    })
}
