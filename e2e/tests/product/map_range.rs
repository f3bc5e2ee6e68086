//! A range of three ports: all are used, another process has one, a static host port is one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::outside::{Way, at, run_at};
use crate::support::parts::with_flags;
use crate::support::pods::{condition, entries, is_true, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, alone, eventually, node_addresses};

const RANGE: &str = "--range=21000-21002";
const PORTS: [u16; 3] = [21000, 21001, 21002];

const SHORT: [&str; 2] = ["--cooldown=2s", "--quarantine=2s"];

fn with_three_ports<T>(cluster: &e2e::Cluster, act: impl FnOnce() -> Result<T>) -> Result<T> {
    with_flags(cluster, &[RANGE], &[&[RANGE], &SHORT[..]].concat(), act)
}

fn port(pod: &Value) -> Result<u16> {
    Ok(entries(pod)?
        .first()
        .context("nothing is mapped")?
        .host_port)
}

/// Waits until a pod's condition says that there is no port for it; returns the message.
fn refused(space: &Space<'_>, name: &str) -> Result<String> {
    eventually(
        &format!("the condition of {name} to say that the range is used up"),
        || {
            let pod = space.pod(name)?;
            let condition = condition(&pod, ANNOTATION).context("no condition yet")?;
            ensure!(condition["reason"] == "NoFreePort", "{condition}");
            ensure!(
                condition["status"] == "False" && !is_true(&pod, "Ready"),
                "{condition}"
            );
            Ok(condition["message"].as_str().unwrap_or_default().to_owned())
        },
    )
}

#[test]
fn a_used_up_range_is_reported_once_and_pods_are_mapped_when_ports_come_free() -> Result<()> {
    alone(|cluster| {
        with_three_ports(cluster, || {
            Space::with(cluster, "range-full", |space| {
                let (leave, left) = std::sync::mpsc::channel::<()>();
                let (taken, has_it) = std::sync::mpsc::channel();
                let other_process = at(cluster, "node1", move || {
                    let socket = TcpListener::bind(("0.0.0.0", PORTS[0]));
                    let _ = taken.send(socket.is_ok());
                    let _ = left.recv();
                    drop(socket);
                })?;
                ensure!(has_it.recv()?, "port {} was taken already", PORTS[0]);
                for name in ["first", "second"] {
                    space.create(&on_node(mapped_pod(name), "node1"))?;
                }
                let first = space.ready("first")?;
                let mut mapped = vec![port(&first)?, port(&space.ready("second")?)?];
                mapped.sort_unstable();
                ensure!(
                    mapped == PORTS[1..],
                    "a pod was mapped to the other process's port: {mapped:?}"
                );
                space.answers(&first, &entries(&first)?[0], Way::Http)?;

                space.create(&on_node(mapped_pod("third"), "node1"))?;
                let message = refused(space, "third")?;
                for part in ["21000-21002 has 3 ports", "2 mapped", "1 in quarantine"] {
                    ensure!(message.contains(part), "{part:?} is not in {message:?}");
                }
                drop(leave);
                other_process
                    .join()
                    .ok()
                    .context("the other process panicked")??;
                let third = space.ready("third")?;
                ensure!(
                    port(&third)? == PORTS[0],
                    "not the port of the other process"
                );
                space.answers(&third, &entries(&third)?[0], Way::Http)?;

                space.create(&on_node(mapped_pod("fourth"), "node1"))?;
                let message = refused(space, "fourth")?;
                ensure!(message.contains("3 mapped"), "{message:?}");
                space.kubectl(&["delete", "pod", "first"])?;
                let fourth = space.ready("fourth")?;
                ensure!(
                    port(&fourth)? == port(&first)?,
                    "not the port that came free"
                );
                space.answers(&fourth, &entries(&fourth)?[0], Way::Http)?;
                for name in ["third", "fourth"] {
                    let events = space.events(name)?;
                    let reported = events
                        .iter()
                        .filter(|(reason, _)| reason == "NoFreePort")
                        .count();
                    ensure!(
                        reported == 1,
                        "{name} has {reported} such events: {events:?}"
                    );
                }
                Ok(())
            })
        })
    })
}

/// Longer than the enforcer takes to read the rules again.
const STAY: Duration = Duration::from_secs(7);

/// Much longer than a pod takes from its creation to its mapping.
const COOL_DOWN: Duration = Duration::from_secs(20);

#[test]
fn a_released_port_stays_held_and_no_other_pod_gets_it_before_its_cool_down_ends() -> Result<()> {
    const ONE: &str = "--range=21000-21000";
    alone(|cluster| {
        let cool_down = format!("--cooldown={}s", COOL_DOWN.as_secs());
        with_flags(cluster, &[ONE], &[ONE, &cool_down], || {
            Space::with(cluster, "range-cool-down", |space| {
                space.create(&on_node(mapped_pod("first"), "node1"))?;
                let first = space.ready("first")?;
                let released = entries(&first)?.remove(0);
                space.answers(&first, &released, Way::Http)?;
                // the port is released later than this
                let begun = Instant::now();
                space.kubectl(&["delete", "pod", "first"])?;
                space.create(&on_node(mapped_pod("second"), "node1"))?;
                let (mut reads, mut waited) = (0, false);
                loop {
                    let port = released.host_port;
                    let bound = run_at(cluster, "node1", move || {
                        TcpListener::bind(("0.0.0.0", port)).is_ok()
                    })?;
                    let second = space.pod("second")?;
                    if begun.elapsed() >= COOL_DOWN {
                        break;
                    }
                    let after = begun.elapsed();
                    ensure!(!bound, "{port} could be bound after {after:?}");
                    ensure!(
                        !is_true(&second, ANNOTATION) && entries(&second).is_err(),
                        "mapped after {after:?}: {second}"
                    );
                    let why = condition(&second, ANNOTATION);
                    waited |= why.is_some_and(|why| why["reason"] == "NoFreePort")
                        && second["status"]["phase"] == "Running";
                    reads += 1;
                }
                ensure!(
                    waited && reads > 10,
                    "nothing was proven: {reads} reads, waited for a port: {waited}"
                );
                let second = space.ready("second")?;
                let again = entries(&second)?.remove(0);
                ensure!(again.host_port == released.host_port, "{again:?}");
                space.answers(&second, &again, Way::Http)
            })
        })
    })
}

#[test]
fn a_static_host_port_in_the_range_is_never_allocated() -> Result<()> {
    alone(|cluster| {
        with_three_ports(cluster, || {
            Space::with(cluster, "range-static", |space| {
                let ports = json!([{ "containerPort": 9040, "hostPort": PORTS[1] }]);
                space.create(&on_node(pod("fixed", &["--http", "9040"], &ports), "node2"))?;
                space.kubectl(&[
                    "wait",
                    "--for=condition=Ready",
                    "pod/fixed",
                    "--timeout=60s",
                ])?;
                for name in ["first", "second", "third"] {
                    space.create(&on_node(mapped_pod(name), "node2"))?;
                }
                let mut mapped = Vec::new();
                let mut waiting = Vec::new();
                for name in ["first", "second", "third"] {
                    let reported = eventually(&format!("{name} to be mapped or refused"), || {
                        let pod = space.pod(name)?;
                        let condition = condition(&pod, ANNOTATION).context("no condition yet")?;
                        Ok(condition["reason"].as_str().unwrap_or_default().to_owned())
                    })?;
                    match reported.as_str() {
                        "Mapped" => mapped.push(port(&space.ready(name)?)?),
                        _ => waiting.push(name),
                    }
                }
                mapped.sort_unstable();
                ensure!(mapped == [PORTS[0], PORTS[2]], "mapped: {mapped:?}");
                let [last] = waiting[..] else {
                    anyhow::bail!("these wait: {waiting:?}")
                };
                refused(space, last)?;
                let address = node_addresses(cluster)?
                    .remove("node2")
                    .context("no node2")?;
                let endpoint = format!("{address}:{}", PORTS[1]).parse()?;
                eventually("the static host port to answer", || {
                    let answer = crate::support::outside::ask(cluster, Way::Http, endpoint)?;
                    ensure!(answer == "fixed", "{endpoint} answered {answer:?}");
                    Ok(())
                })?;
                // its number is free when the pod is gone
                space.kubectl(&["delete", "pod", "fixed"])?;
                let freed = space.ready(last)?;
                ensure!(port(&freed)? == PORTS[1], "not the port that came free");
                space.answers(&freed, &entries(&freed)?[0], Way::Http)
            })
        })
    })
}

/// A user without any right on other pods could otherwise unmap them all.
#[test]
fn static_host_ports_of_a_pod_that_never_runs_take_no_more_than_max_ports() -> Result<()> {
    alone(|cluster| {
        // the bound of the namespace is not the one that holds
        let flags = [
            &[RANGE, "--max-ports=1", "--namespace-share=100"],
            &SHORT[..],
        ]
        .concat();
        with_flags(cluster, &[RANGE], &flags, || {
            Space::with(cluster, "range-never-runs", |space| {
                let mut owners = BTreeMap::new();
                for name in ["first", "second", "third"] {
                    space.create(&on_node(mapped_pod(name), "node1"))?;
                    let pod = space.ready(name)?;
                    owners.insert(port(&pod)?, (name, pod));
                }
                ensure!(owners.keys().eq(&PORTS), "{:?}", owners.keys());
                let ports: Vec<_> = PORTS
                    .iter()
                    .map(|port| json!({ "containerPort": port, "hostPort": port }))
                    .collect();
                let mut claimant = pod("claimant", &["--pause"], &json!(ports));
                claimant["spec"]["containers"][0]["image"] = json!("localhost/is-not-there:1");
                claimant["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
                space.create(&on_node(claimant, "node1"))?;
                eventually(
                    "the claimant to learn that most of its ports stay mapped",
                    || {
                        let events = space.events("claimant")?;
                        let said = |(reason, note): &(String, String)| {
                            reason == "PortConflict" && note.contains("(--max-ports)")
                        };
                        ensure!(events.iter().any(said), "{events:?}");
                        Ok(())
                    },
                )?;
                let claimant = space.pod("claimant")?;
                ensure!(!is_true(&claimant, "Ready"), "it runs: {claimant}");
                let (unmapped, _) = owners.remove(&PORTS[0]).context("no first port")?;
                refused(space, unmapped)?;
                let stay = || -> Result<()> {
                    for (number, (name, before)) in &owners {
                        let now = space.pod(name)?;
                        ensure!(port(&now)? == *number, "{name} moved: {now}");
                        ensure!(is_true(&now, ANNOTATION), "{name} is not mapped: {now}");
                        space.answers(before, &entries(before)?[0], Way::Http)?;
                    }
                    Ok(())
                };
                // the CNI puts its jump before ours when a node gets its first static host port
                eventually("the other pods to answer", stay)?;
                // as long as the claimant is there
                let begun = Instant::now();
                while begun.elapsed() < STAY {
                    stay()?;
                }
                space.kubectl(&["delete", "pod", "claimant"])?;
                let again = space.ready(unmapped)?;
                ensure!(port(&again)? == PORTS[0], "not the port that came free");
                space.answers(&again, &entries(&again)?[0], Way::Http)
            })
        })
    })
}

#[test]
fn a_pod_that_changes_its_request_again_and_again_leaves_ports_to_other_pods() -> Result<()> {
    const TWENTY: &str = "--range=21000-21019";
    alone(|cluster| {
        // no cool-down ends during the test
        let enforcer = [TWENTY, "--cooldown=600s"];
        with_flags(cluster, &[TWENTY], &enforcer, || {
            Space::with(cluster, "range-churn", |space| {
                space.create(&on_node(mapped_pod("churn"), "node1"))?;
                space.ready("churn")?;
                let mut seen = BTreeSet::new();
                // more requests than there are ports
                for wanted in 1..=25 {
                    let request = format!(r#"{ANNOTATION}=[{{"containerPort":{wanted}}}]"#);
                    space.kubectl(&["annotate", "--overwrite", "pod", "churn", &request])?;
                    let what = format!("request {wanted} to be answered");
                    let result = eventually(&what, || {
                        let result = entries(&space.pod("churn")?)?;
                        let first = result.first().context("no result")?.clone();
                        ensure!(first.container_port == wanted, "{first:?}");
                        Ok(first)
                    })?;
                    seen.insert(result.host_port);
                }
                ensure!(seen.len() <= 4, "the pod could try the ports {seen:?}");
                space.create(&on_node(mapped_pod("quiet"), "node1"))?;
                let quiet = space.ready("quiet")?;
                space.answers(&quiet, &entries(&quiet)?[0], Way::Http)
            })
        })
    })
}
