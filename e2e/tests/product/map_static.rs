//! Static pods of a node, and what static host ports do to the mappings of other pods.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, STATIC_PODS};
use e2e::install;
use e2e::wait::{Probe, until};
use serde_json::json;

use crate::map_results::{mapped_again, result_of};
use crate::support::outside::{Way, ask};
use crate::support::parts::log;
use crate::support::pods::{entries, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{alone, enforcer, eventually, shared};

const NODE: &str = "node1";
/// The rules are read every five seconds.
const MOVED_WITHIN: Duration = Duration::from_secs(40);
const CHECKED_WITHIN: Duration = Duration::from_secs(6);
/// In PREROUTING and OUTPUT of both families. The CNI puts one after the other, so each can be moved by itself.
const JUMPS: usize = 4;
const POLL: Duration = Duration::from_millis(200);

#[test]
fn an_annotated_static_pod_is_mapped() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "static-pod", |space| {
            let mut web = mapped_pod("web");
            web["metadata"]["namespace"] = json!(space.name);
            let shell = |command: String| cluster.exec(NODE, &["sh", "-c", &command]);
            let file = format!("{STATIC_PODS}/{}.json", space.name);
            let written = shell(format!("printf %s '{web}' > {file}"))?;
            ensure!(written.status.success(), "{written:?}");
            let name = format!("web-{NODE}");
            let outcome = space.mapped(&name).and_then(|web| {
                let entry = entries(&web)?.remove(0);
                // it is mapped before its program listens
                eventually("the static pod to answer", || {
                    space.answers(&web, &entry, Way::Http)
                })?;
                // the runtime's result is the pod's, although it names another uid
                let hash = &web["metadata"]["annotations"]["kubernetes.io/config.hash"];
                let hash = hash.as_str().context("no hash")?;
                fs::remove_file(result_of(cluster, NODE, hash)?)?;
                mapped_again(space, &web, Way::Http)
            });
            shell(format!("rm {file}"))?;
            outcome
        })
    })
}

/// Makes the node as one without static host ports so far.
fn forget_static_host_ports(cluster: &Cluster) -> Result<()> {
    let saved = cluster.exec(NODE, &["iptables-save", "-t", "nat"])?;
    let saved = String::from_utf8_lossy(&saved.stdout);
    // the jump in POSTROUTING is the one that the CNI puts first
    let jumps = saved.lines().filter_map(|line| line.strip_prefix("-A "));
    for jump in jumps.filter(|it| !it.starts_with("CNI-") && it.contains("-j CNI-HOSTPORT-")) {
        // its comment has spaces, which are quoted for a shell
        let remove = format!("iptables -t nat -D {jump}");
        let removed = cluster.exec(NODE, &["sh", "-c", &remove])?;
        ensure!(removed.status.success(), "{jump}: {removed:?}");
    }
    Ok(())
}

#[test]
fn the_first_static_host_port_of_a_node_is_no_damage_to_other_pods() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "static-first", |space| {
            // Jumps that were moved twice within ten minutes stay behind the other program's. If they are
            // behind when an enforcer starts, that is once.
            forget_static_host_ports(cluster)?;
            let restart = ["rollout", "restart", "daemonset/enforcer"];
            cluster.kubectl_run([&["-n", install::NAMESPACE][..], &restart].concat())?;
            install::rolled_out(cluster, install::NAMESPACE, "daemonset/enforcer")?;
            space.create(&on_node(mapped_pod("web"), NODE))?;
            let web = space.ready("web")?;
            let reordered = || -> Result<usize> {
                let lines = log(cluster, &enforcer(cluster, NODE)?, "enforcer")?;
                let text = "another program put rules before our jumps";
                let said = |line: &&serde_json::Value| {
                    line["message"]
                        .as_str()
                        .is_some_and(|it| it.starts_with(text))
                };
                let lines: Vec<_> = lines.iter().filter(said).collect();
                let loud = lines.iter().find(|line| line["level"] != "INFO");
                ensure!(loud.is_none(), "a move that is no note: {loud:?}");
                Ok(lines.len())
            };
            let before = reordered()?;
            let moved = (18043..=18045).any(|port| {
                let tried = forget_static_host_ports(cluster).and_then(|()| {
                    let ports = json!([{ "containerPort": 9040, "hostPort": port }]);
                    let fixed = pod(&format!("fixed-{port}"), &["--http", "9040"], &ports);
                    space.create(&on_node(fixed, NODE))?;
                    until("the jumps to be first again", MOVED_WITHIN, POLL, || {
                        Ok(if reordered()? > before {
                            Probe::Done(())
                        } else {
                            let rules = cluster
                                .exec(NODE, &["iptables", "-t", "nat", "-S", "PREROUTING"])?;
                            Probe::Missing(String::from_utf8_lossy(&rules.stdout).into_owned())
                        })
                    })
                });
                // the CNI adds no jump where it still finds its own
                tried.inspect_err(|error| println!("{error:#}")).is_ok()
            });
            ensure!(moved, "the jumps were not moved");
            // events are written in order
            space.create(&on_node(mapped_pod("next"), NODE))?;
            space.ready("next")?;
            let events = eventually("the event of the next pod", || {
                let next = space.events("next")?;
                ensure!(
                    next.iter().any(|(reason, _)| reason == "PortsMapped"),
                    "{next:?}"
                );
                space.events("web")
            })?;
            ensure!(
                !events.iter().any(|(reason, _)| reason == "MappingRepaired"),
                "{events:?}"
            );
            let lines = reordered()?;
            println!("{} lines about it", lines - before);
            ensure!(lines - before <= JUMPS, "{} lines", lines - before);
            let begun = Instant::now();
            while begun.elapsed() < CHECKED_WITHIN {
                let more = reordered()? - lines;
                ensure!(more == 0, "{more} lines more, although nothing was moved");
            }
            space.answers(&web, entries(&web)?.first().context("no entry")?, Way::Http)
        })
    })
}

#[test]
fn a_host_network_program_gets_its_static_port_from_a_mapped_pod() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "static-host", |space| {
            space.create(&on_node(mapped_pod("web"), NODE))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            let (endpoint, number) = (space.endpoint(&web, &entry)?, entry.host_port);
            let ports = json!([{ "containerPort": number, "hostPort": number }]);
            let mut host = pod("host", &["--http", &number.to_string()], &ports);
            host["spec"]["hostNetwork"] = json!(true);
            space.create(&on_node(host, NODE))?;
            eventually("the program to answer at its port", || {
                // a pod on the host network is named after its node
                let answer = ask(cluster, Way::Http, endpoint)?;
                ensure!(answer == NODE, "{endpoint} answered {answer:?}");
                Ok(())
            })?;
            let host = space.pod("host")?;
            let binds = &host["status"]["containerStatuses"][0]["restartCount"];
            println!("the program failed to bind its port {binds} times");
            eventually("the mapped pod to answer at another port", || {
                let web = space.pod("web")?;
                let entry = entries(&web)?.remove(0);
                ensure!(entry.host_port != number, "still {number}");
                space.answers(&web, &entry, Way::Http)
            })
        })
    })
}
