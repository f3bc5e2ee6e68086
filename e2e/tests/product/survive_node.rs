//! What do users notice of an upgrade and of a reboot?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::install;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::outside::{Way, at};
use crate::support::parts::{ENFORCER, pids};
use crate::support::pods::{annotated, condition, entries, is_true, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::streams::{call, follow, steal};
use crate::support::{ANNOTATION, alone, eventually, node_addresses};

const SYSTEM: &str = install::NAMESPACE;
/// Rolling updates in a row.
const ROLLS: usize = 6;

#[test]
fn an_upgrade_loses_no_port_no_byte_and_no_connection() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "node-upgrade", |space| {
            let nodes = node_addresses(cluster)?;
            let node = nodes.keys().next().context("no node")?;
            let ports = json!([{ "containerPort": 9040 }, { "containerPort": 9041 }]);
            let streaming = pod("streaming", &["--tcp", "9040", "--stream", "9041"], &ports);
            space.create(&on_node(annotated(streaming, ""), node))?;
            let streaming = space.ready("streaming")?;
            let mapped = entries(&streaming)?;
            let mut held: Vec<u16> = mapped.iter().map(|entry| entry.host_port).collect();
            let endpoint = space.endpoint(&streaming, &mapped[1])?;
            let mut answering = vec![(
                space.endpoint(&streaming, &mapped[0])?,
                "streaming".to_owned(),
            )];
            let others: Vec<_> = (0..6).map(|index| format!("other-{index}")).collect();
            for name in &others {
                let ports = json!([{ "containerPort": 9040 }]);
                let other = annotated(pod(name, &["--tcp", "9040"], &ports), "");
                space.create(&on_node(other, node))?;
            }
            for name in others {
                let other = space.ready(&name)?;
                let entry = entries(&other)?.remove(0);
                held.push(entry.host_port);
                answering.push((space.endpoint(&other, &entry)?, name));
            }
            let answering_ports = answering.len();
            let stop = Arc::new(AtomicBool::new(false));
            let until = Arc::clone(&stop);
            let reader = at(cluster, "client", move || follow(endpoint, &until))?;
            let until = Arc::clone(&stop);
            let thief = at(cluster, node, move || steal(&held, &until))?;
            let until = Arc::clone(&stop);
            let caller = at(cluster, "client", move || {
                call(&answering, Duration::from_millis(5), &until)
            })?;
            for _ in 0..ROLLS {
                cluster.kubectl_run(["-n", SYSTEM, "rollout", "restart", "ds/enforcer"])?;
                install::rolled_out(cluster, SYSTEM, "daemonset/enforcer")?;
            }
            space.create(&on_node(mapped_pod("after"), node))?;
            let after = space.ready("after")?;
            space.answers(&after, &entries(&after)?[0], Way::Http)?;
            stop.store(true, Ordering::Relaxed);
            let lines = reader.join().ok().context("the reader panicked")???;
            let (stolen, tries) = thief
                .join()
                .ok()
                .context("the process that binds ports panicked")??;
            let (calls, failures) = caller.join().ok().context("the caller panicked")??;
            println!("{lines} lines without a gap, {tries} tries to take a port, {calls} calls");
            ensure!(stolen.is_empty(), "held ports were taken: {stolen:?}");
            ensure!(
                failures.is_empty(),
                "{} of {calls} calls were not answered by their pod: {failures:?}",
                failures.len()
            );
            ensure!(
                lines > 100 && tries > 100 && calls > 100 * answering_ports,
                "nothing was proven"
            );
            ensure!(
                entries(&space.pod("streaming")?)? == mapped,
                "the mapping changed"
            );
            Ok(())
        })
    })
}

#[test]
fn after_a_power_cut_a_pod_has_its_host_port_again() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "node-reboot", |space| {
            space.create(&on_node(mapped_pod("web"), "node2"))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            space.answers(&web, &entry, Way::Http)?;
            cluster.kill_node(2)?;
            cluster.add_node(2)?;
            eventually("the pod to answer at its old host port", || {
                let web = space.pod("web")?;
                let again = entries(&web)?.remove(0);
                ensure!(
                    again.host_port == entry.host_port,
                    "the port moved to {}",
                    again.host_port
                );
                space.answers(&web, &again, Way::Http)
            })?;
            space.ready("web").map(drop)
        })
    })
}

/// How much later than its container the enforcer works.
const LATE: Duration = Duration::from_secs(5);

#[test]
fn after_a_power_cut_a_late_enforcer_takes_back_what_it_cannot_vouch_for() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "node-late", |space| {
            space.create(&on_node(mapped_pod("web"), "node2"))?;
            let web = space.ready("web")?;
            let entry = entries(&web)?.remove(0);
            let since = |pod: &serde_json::Value| {
                condition(pod, ANNOTATION).map(|it| it["lastTransitionTime"].clone())
            };
            let container = |pod: &serde_json::Value| {
                pod["status"]["containerStatuses"][0]["containerID"].clone()
            };
            let before = (since(&web), container(&web));
            cluster.kill_node(2)?;
            cluster.add_node(2)?;
            let late = eventually("the enforcer to start", || {
                let found = pids(cluster, "node2", ENFORCER)?;
                found.first().copied().context("no enforcer")
            })?;
            let late = Pid::from_raw(i32::try_from(late)?);
            kill(late, Signal::SIGSTOP).context("stop the enforcer")?;
            let until = Instant::now() + LATE;
            let mut ready = None;
            while Instant::now() < until {
                let web = space.pod("web")?;
                if ready.is_none() && is_true(&web, "Ready") && container(&web) != before.1 {
                    ready = Some(Instant::now());
                }
            }
            kill(late, Signal::SIGCONT).context("continue the enforcer")?;
            eventually("the pod to answer again", || {
                space.answers(&web, &entry, Way::Http)
            })?;
            let answers = Instant::now();
            println!(
                "Ready for {:?} before the ports answer; {:?} of it after the enforcer continued",
                ready.map(|ready| answers - ready),
                answers - until,
            );
            let web = space.ready("web")?;
            // False in between: a condition that stays True keeps its time
            ensure!(
                since(&web) != before.0,
                "the condition was True all the time"
            );
            Ok(())
        })
    })
}
