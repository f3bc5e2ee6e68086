//! Do rules that another program flushes come back?

use anyhow::{Result, ensure};
use e2e::Cluster;

use crate::reach::backends;
use crate::support::load::Changes;
use crate::support::outside::Way;
use crate::support::parts::with_flags;
use crate::support::pods::{MappedPort, entries, mapped_pod, on_node};
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
