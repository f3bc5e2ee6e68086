//! What do users notice when a part of the product ends?

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, install};
use serde_json::{Value, json};

use crate::support::outside::{Way, at, is_refused};
use crate::support::parts::roll;
use crate::support::pods::{annotated, container, entries, is_true, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::streams::{follow, steal};
use crate::support::{alone, enforcer, eventually, first_node, kubectl_with};

const SYSTEM: &str = install::NAMESPACE;

/// How often the enforcer's container has restarted.
fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"]
        .as_i64()
        .unwrap_or(-1)
}

/// Sends a signal to the enforcer (not its keeper) of a node.
fn signal(cluster: &Cluster, node: &str, signal: &str) -> Result<()> {
    let output = cluster.exec(node, &["pkill", signal, "-f", "^/enforcer run"])?;
    ensure!(
        output.status.success(),
        "no enforcer to signal on {node}: {output:?}"
    );
    Ok(())
}

#[test]
fn a_killed_enforcer_loses_no_port_no_byte_and_no_mapping() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-kill", |space| {
            let node = first_node(cluster)?;
            let ports = json!([{ "containerPort": 9040 }, { "containerPort": 9041 }]);
            let streaming = pod("streaming", &["--http", "9040", "--stream", "9041"], &ports);
            space.create(&on_node(annotated(streaming, ""), &node))?;
            for index in 0..3 {
                space.create(&on_node(mapped_pod(&format!("other-{index}")), &node))?;
            }
            let streaming = space.ready("streaming")?;
            let mapped = entries(&streaming)?;
            let mut held: Vec<u16> = mapped.iter().map(|entry| entry.host_port).collect();
            for index in 0..3 {
                held.extend(
                    entries(&space.ready(&format!("other-{index}"))?)?
                        .iter()
                        .map(|e| e.host_port),
                );
            }
            let stop = Arc::new(AtomicBool::new(false));
            let endpoint = space.endpoint(&streaming, &mapped[1])?;
            let (watched, until) = (Arc::clone(&stop), Arc::clone(&stop));
            let reader = at(cluster, "client", move || follow(endpoint, &watched))?;
            let thief = at(cluster, &node, move || steal(&held, &until))?;
            let before = restarts(&enforcer(cluster, &node)?);
            for kill in 1..=2 {
                signal(cluster, &node, "-KILL")?;
                eventually("the enforcer to be back", || {
                    let pod = enforcer(cluster, &node)?;
                    ensure!(restarts(&pod) >= before + kill, "not restarted yet");
                    ensure!(is_true(&pod, "Ready"), "not Ready yet");
                    Ok(())
                })?;
                space.answers(&streaming, &mapped[0], Way::Http)?;
            }
            // the restarted enforcer maps a new pod
            space.create(&on_node(mapped_pod("after"), &node))?;
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

/// Runs `act` while no enforcer (nor keeper) runs anywhere.
fn without_enforcer(cluster: &Cluster, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let select = |patch: Value| {
        let body =
            json!({ "spec": { "template": { "spec": { "nodeSelector": patch } } } }).to_string();
        cluster.kubectl_run([
            "-n",
            SYSTEM,
            "patch",
            "ds",
            "enforcer",
            "--type=merge",
            "-p",
            &body,
        ])
    };
    select(json!({ "tkestack.io/nowhere": "true" }))?;
    let label = "app.kubernetes.io/component=enforcer";
    let gone = [
        "-n",
        SYSTEM,
        "wait",
        "--for=delete",
        "pod",
        "-l",
        label,
        "--timeout=60s",
    ];
    let outcome = cluster.kubectl_run(gone).map(drop).and_then(|()| act());
    select(json!({ "tkestack.io/nowhere": null }))?;
    cluster.kubectl_run([
        "-n",
        SYSTEM,
        "rollout",
        "status",
        "ds/enforcer",
        "--timeout=90s",
    ])?;
    outcome
}

#[test]
fn changes_while_the_enforcer_is_down_are_applied_when_it_is_back() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-down", |space| {
            let node = first_node(cluster)?;
            for name in ["stays", "goes"] {
                space.create(&on_node(mapped_pod(name), &node))?;
            }
            let (stays, goes) = (space.ready("stays")?, space.ready("goes")?);
            let (kept, lost) = (entries(&stays)?.remove(0), entries(&goes)?.remove(0));
            without_enforcer(cluster, || {
                // the kernel translates without the enforcer
                space.answers(&stays, &kept, Way::Http)?;
                space.kubectl(&["delete", "pod", "goes"])?;
                space.create(&on_node(mapped_pod("comes"), &node))?;
                Ok(())
            })?;
            let comes = space.ready("comes")?;
            space.answers(&comes, &entries(&comes)?[0], Way::Http)?;
            ensure!(
                entries(&space.ready("stays")?)?[0] == kept,
                "the mapping moved"
            );
            space.answers(&stays, &kept, Way::Http)?;
            let endpoint = space.endpoint(&goes, &lost)?;
            eventually("the deleted pod's port to refuse", || {
                ensure!(is_refused(cluster, endpoint)?, "{endpoint} still answers");
                Ok(())
            })
        })
    })
}

/// Flushes every chain of ours.
const FLUSH: &str = "for i in iptables ip6tables; do
    $i -t nat -S | sed -n 's/^-N \\(PORTMAPPING[^ ]*\\)$/\\1/p' | while read -r chain; do
        $i -t nat -F \"$chain\" || exit 1
    done
done";

/// More than the kernel and a busy machine need for one datagram there and back.
const DATAGRAM_LIMIT: Duration = Duration::from_secs(2);

/// Asks from one socket without a pause; how many datagrams were answered, and how many were not.
fn ask(to: SocketAddr, stop: &AtomicBool) -> Result<(usize, usize)> {
    let client = UdpSocket::bind("0.0.0.0:0")?;
    client.connect(to)?;
    client.set_read_timeout(Some(DATAGRAM_LIMIT))?;
    let (mut answered, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let answer = client.send(b"who are you?\n");
        match answer.and_then(|_| client.recv(&mut [0; 256])) {
            Ok(_) => answered += 1,
            Err(_) => lost += 1,
        }
    }
    Ok((answered, lost))
}

#[test]
fn rules_flushed_while_the_enforcer_is_down_come_back_with_the_same_ports() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-both", |space| {
            let node = first_node(cluster)?;
            let ports = json!([{ "containerPort": 9040 },
                               { "containerPort": 9041, "protocol": "UDP" }]);
            let web = pod("web", &["--http", "9040", "--udp", "9041"], &ports);
            space.create(&on_node(annotated(web, ""), &node))?;
            let web = space.ready("web")?;
            let before = entries(&web)?;
            // after the first end of a container the kubelet restarts it at once
            roll(cluster)?;
            // the kernel keeps the way of a client that goes on sending
            let to = space.endpoint(&web, &before[1])?;
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let client = at(cluster, "client", move || ask(to, &stopped))?;
            let restarts_before = restarts(&enforcer(cluster, &node)?);
            signal(cluster, &node, "-KILL")?;
            let flush = cluster.exec(&node, &["sh", "-c", FLUSH])?;
            ensure!(flush.status.success(), "{flush:?}");
            eventually("the enforcer to be back", || {
                let pod = enforcer(cluster, &node)?;
                ensure!(restarts(&pod) > restarts_before, "not restarted yet");
                ensure!(is_true(&pod, "Ready"), "not Ready yet");
                Ok(())
            })?;
            eventually("the mapping to be back", || {
                space.answers(&web, &before[0], Way::Http)
            })?;
            stop.store(true, Ordering::Relaxed);
            let (answered, lost) = client.join().ok().context("the client panicked")???;
            ensure!(
                answered > 100 && lost == 0,
                "{lost} datagrams of {answered} got no answer"
            );
            let after = entries(&space.pod("web")?)?;
            ensure!(after == before, "{after:?} after {before:?}");
            Ok(())
        })
    })
}

#[test]
fn without_the_webhook_annotated_pods_are_refused_and_others_are_not() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "survive-hook", |space| {
            let scale = |replicas: &str| {
                let replicas = format!("--replicas={replicas}");
                cluster.kubectl_run(["-n", SYSTEM, "scale", "deployment/webhook", &replicas])
            };
            scale("0")?;
            let outcome = eventually("the webhook to be down", || {
                let more = ["--dry-run=server"];
                let (fine, reply) = space.try_create(&mapped_pod("asks"), &more)?;
                ensure!(!fine, "still answered");
                ensure!(
                    reply.contains("pods.portmapping.tkestack.io"),
                    "unclear: {reply}"
                );
                Ok(())
            })
            .and_then(|()| {
                let plain = container(&["--http", "9040"], &json!([{ "containerPort": 9040 }]));
                // no annotations at all, as controllers and static pods have none
                space.create(
                    &json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "plain" },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [plain] } }),
                )?;
                let mut noted = pod("noted", &["--http", "9040"], &json!([]));
                noted["metadata"]["annotations"]["example.com/note"] = json!("x");
                space.create(&noted)?;
                let mut system = pod("portmapping-e2e", &["--pause"], &json!([]));
                system["metadata"]["namespace"] = json!("kube-system");
                let created = kubectl_with(cluster, &["create", "-f", "-"], &system.to_string())?;
                ensure!(created.0, "a system pod was refused: {}", created.1);
                for (namespace, name) in [
                    (space.name.as_str(), "plain"),
                    ("kube-system", "portmapping-e2e"),
                ] {
                    cluster.kubectl_run([
                        "-n",
                        namespace,
                        "wait",
                        "--for=condition=Ready",
                        "pod",
                        name,
                        "--timeout=60s",
                    ])?;
                }
                cluster.kubectl_run([
                    "-n",
                    "kube-system",
                    "delete",
                    "pod",
                    "portmapping-e2e",
                    "--wait=false",
                ])?;
                Ok(())
            });
            scale("2")?;
            cluster.kubectl_run([
                "-n",
                SYSTEM,
                "rollout",
                "status",
                "deployment/webhook",
                "--timeout=90s",
            ])?;
            outcome?;
            eventually("the webhook to answer again", || {
                space.create(&mapped_pod("asks"))
            })?;
            space.ready("asks").map(drop)
        })
    })
}
