//! Enforcer and keeper end together or again and again, and no successor takes the ports over.

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::outside::{Way, at, run_at, tcp};
use crate::support::parts::{ENFORCER, KEEPER, kill_all, log, pids, roll};
use crate::support::pods::{annotated, condition, entries, is_true, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::streams::{follow, steal};
use crate::support::{ANNOTATION, alone, enforcer, eventually};

const NODE: &str = "node2";

#[test]
#[ignore = "minutes; by command"]
fn an_enforcer_killed_into_back_off_leaves_every_port_held() -> Result<()> {
    alone(|cluster| {
        roll(cluster)?;
        Space::with(cluster, "losses-back-off", |space| {
            let ports = json!([{ "containerPort": 9040 }, { "containerPort": 9041 }]);
            let streaming = pod("streaming", &["--http", "9040", "--stream", "9041"], &ports);
            space.create(&on_node(annotated(streaming, ""), NODE))?;
            let streaming = space.ready("streaming")?;
            let mapped = entries(&streaming)?;
            let held: Vec<u16> = mapped.iter().map(|entry| entry.host_port).collect();
            let stop = Arc::new(AtomicBool::new(false));
            let endpoint = space.endpoint(&streaming, &mapped[1])?;
            let (watched, until) = (Arc::clone(&stop), Arc::clone(&stop));
            let reader = at(cluster, "client", move || follow(endpoint, &watched))?;
            let thief = at(cluster, NODE, move || steal(&held, &until))?;
            let mut killed = BTreeSet::new();
            for _ in 0..5 {
                eventually("an enforcer to kill", || {
                    // on a busy node a killed process may still be there
                    let living = pids(cluster, NODE, ENFORCER)?;
                    ensure!(living.iter().any(|pid| killed.insert(*pid)), "none runs");
                    kill_all(cluster, NODE, ENFORCER)
                })?;
            }
            eventually(
                "the kubelet to wait before it starts the enforcer again",
                || {
                    let pod = enforcer(cluster, NODE)?;
                    let waiting =
                        &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
                    ensure!(
                        waiting == "CrashLoopBackOff",
                        "{}",
                        pod["status"]["containerStatuses"]
                    );
                    Ok(())
                },
            )?;
            space.answers(&streaming, &mapped[0], Way::Http)?;
            // a new enforcer takes over while the old one does not run
            roll(cluster)?;
            space.create(&on_node(mapped_pod("after"), NODE))?;
            let after = space.ready("after")?;
            space.answers(&after, &entries(&after)?[0], Way::Http)?;
            stop.store(true, Ordering::Relaxed);
            let lines = reader.join().ok().context("the reader panicked")???;
            let (stolen, tries) = thief
                .join()
                .ok()
                .context("the process that binds ports panicked")??;
            println!("{lines} lines without a gap, {tries} tries to take a held port");
            ensure!(stolen.is_empty(), "held ports were taken: {stolen:?}");
            ensure!(
                lines > 100 && tries > 100,
                "nothing was proven: {lines} lines, {tries} tries"
            );
            ensure!(
                entries(&space.pod("streaming")?)? == mapped,
                "the mapping changed"
            );
            Ok(())
        })
    })
}

/// Binds a port as soon as it is not held, and keeps it until `stop` is set.
fn rob(port: u16, stop: &AtomicBool) -> bool {
    let mut loot = None;
    while !stop.load(Ordering::Relaxed) {
        if loot.is_none() {
            loot = TcpListener::bind(("0.0.0.0", port)).ok();
        }
        std::thread::sleep(Duration::from_micros(if loot.is_none() {
            200
        } else {
            20_000
        }));
    }
    loot.is_some()
}

/// Nothing binds the ports then: another process could take one.
#[test]
fn the_condition_says_that_no_keeper_runs_and_is_true_again_after_it() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "losses-condition", |space| {
            space.create(&on_node(mapped_pod("web"), NODE))?;
            let web = space.ready("web")?;
            let before = entries(&web)?;
            let status = || -> Result<String> {
                let web = space.pod("web")?;
                let condition = condition(&web, ANNOTATION).context("no condition")?;
                Ok(condition["status"].to_string())
            };
            eventually("the condition to be False", || {
                // the kubelet starts it again, each time later
                kill_all(cluster, NODE, KEEPER)?;
                let status = status()?;
                ensure!(status.contains("False"), "still {status}");
                Ok(())
            })?;
            // new containers start at once
            roll(cluster)?;
            let web = space.ready("web")?;
            ensure!(is_true(&web, ANNOTATION), "not mapped any more");
            ensure!(entries(&web)? == before, "other ports");
            space.answers(&web, &before[0], Way::Http)
        })
    })
}

#[test]
fn without_keeper_and_api_server_ports_are_held_again_and_a_lost_one_is_reported() -> Result<()> {
    alone(|cluster| {
        roll(cluster)?;
        Space::with(cluster, "losses-keeper", |space| {
            for name in ["robbed", "whole-1", "whole-2"] {
                let ports = json!([{ "containerPort": 9040 }, { "containerPort": 9041, "protocol": "UDP" }]);
                let both = pod(name, &["--tcp", "9040", "--udp", "9041"], &ports);
                space.create(&on_node(annotated(both, ""), NODE))?;
            }
            let robbed = space.ready("robbed")?;
            let before = entries(&robbed)?;
            let endpoint = space.endpoint(&robbed, &before[0])?;
            let lost = before[0].host_port;
            let mut others = vec![("UDP".to_owned(), before[1].host_port)];
            for name in ["whole-1", "whole-2"] {
                let mapped = entries(&space.ready(name)?)?;
                others.extend(
                    mapped
                        .into_iter()
                        .map(|entry| (entry.protocol, entry.host_port)),
                );
            }
            let stop = Arc::new(AtomicBool::new(false));
            let until = Arc::clone(&stop);
            let thief = at(cluster, NODE, move || rob(lost, &until))?;

            cluster.stop_component("control-plane", "kube-apiserver")?;
            let held_again = (|| {
                ensure!(kill_all(cluster, NODE, KEEPER)? == 1, "no keeper to kill");
                ensure!(
                    kill_all(cluster, NODE, ENFORCER)? == 1,
                    "no enforcer to kill"
                );
                let loose = is_free_now(cluster, &others)?;
                eventually("both to run again, without an API server", || {
                    for program in [KEEPER, ENFORCER] {
                        ensure!(!pids(cluster, NODE, program)?.is_empty(), "no {program:?}");
                    }
                    Ok(())
                })?;
                eventually("the mapped ports to be held again", || {
                    let free = is_free_now(cluster, &others)?;
                    ensure!(free.is_empty(), "not held: {free:?}");
                    Ok(())
                })?;
                // a rule matches before a socket: the lost port still leads to its pod
                let answer = run_at(cluster, "client", move || tcp(endpoint))??;
                ensure!(answer == "robbed", "{endpoint} answered {answer:?}");
                Ok(loose.len())
            })();
            cluster.resume_component("control-plane", "kube-apiserver")?;
            let loose = held_again?;

            eventually("the loss to be reported", || {
                let robbed = space.pod("robbed")?;
                let condition = condition(&robbed, ANNOTATION).context("no condition")?;
                ensure!(condition["status"] == "False", "still {condition}");
                ensure!(
                    condition["reason"] == "PortConflict",
                    "not the reason: {condition}"
                );
                ensure!(
                    condition["message"].to_string().contains(&lost.to_string()),
                    "{condition}"
                );
                let events = space.events("robbed")?;
                ensure!(
                    events.iter().any(|(reason, _)| reason == "PortConflict"),
                    "no event: {events:?}"
                );
                Ok(())
            })?;
            for name in ["whole-1", "whole-2"] {
                ensure!(
                    is_true(&space.ready(name)?, ANNOTATION),
                    "{name} is not mapped any more"
                );
            }
            let lines = log(cluster, &enforcer(cluster, NODE)?, "enforcer")?;
            let held = lines
                .iter()
                .find(|line| line["ports"] == others.len() && line["lost"] == 1);
            let held = held.context("no log line of the enforcer has these numbers")?;
            println!(
                "{loose} ports were free when they were tried; they were held again {} ms after the enforcer's start",
                held["ms"]
            );

            stop.store(true, Ordering::Relaxed);
            ensure!(
                thief
                    .join()
                    .ok()
                    .context("the process that binds ports panicked")??,
                "no port was bound"
            );
            let again = space.ready("robbed")?;
            ensure!(entries(&again)? == before, "the mapping moved");
            Ok(())
        })
    })
}

fn is_free_now(cluster: &e2e::Cluster, ports: &[(String, u16)]) -> Result<Vec<(String, u16)>> {
    let ports = ports.to_vec();
    run_at(cluster, NODE, move || {
        let is_free = |(protocol, port): &(String, u16)| match protocol.as_str() {
            "UDP" => UdpSocket::bind(("0.0.0.0", *port)).is_ok(),
            _ => TcpListener::bind(("0.0.0.0", *port)).is_ok(),
        };
        ports.into_iter().filter(is_free).collect()
    })
}
