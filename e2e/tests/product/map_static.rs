//! Static pods of a node, and what static host ports do to the mappings of other pods.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::cluster::STATIC_PODS;
use serde_json::json;

use crate::map_results::{mapped_again, result_of};
use crate::support::outside::{Way, ask};
use crate::support::parts::log;
use crate::support::pods::{entries, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{alone, enforcer, eventually, shared};

const NODE: &str = "node1";

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
                space.answers(&web, &entry, Way::Http)?;
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

#[test]
fn the_first_static_host_port_of_a_node_is_no_damage_to_other_pods() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "static-first", |space| {
            // as on a node without static host ports so far
            let saved = cluster.exec(NODE, &["iptables-save", "-t", "nat"])?;
            let saved = String::from_utf8_lossy(&saved.stdout);
            for jump in saved
                .lines()
                .filter(|l| l.ends_with("-j CNI-HOSTPORT-DNAT"))
            {
                let rule = jump.replacen("-A", "-D", 1);
                let command: Vec<&str> = ["iptables", "-t", "nat"]
                    .into_iter()
                    .chain(rule.split(' '))
                    .collect();
                let removed = cluster.exec(NODE, &command)?;
                ensure!(removed.status.success(), "{jump}: {removed:?}");
            }
            space.create(&on_node(mapped_pod("web"), NODE))?;
            let web = space.ready("web")?;
            let reordered = || -> Result<usize> {
                let lines = log(cluster, &enforcer(cluster, NODE)?, "enforcer")?;
                let text = "another program put rules before our jumps";
                let said = |line: &serde_json::Value| {
                    line["message"]
                        .as_str()
                        .is_some_and(|it| it.starts_with(text))
                };
                Ok(lines.iter().filter(|line| said(line)).count())
            };
            let before = reordered()?;
            let ports = json!([{ "containerPort": 9040, "hostPort": 18043 }]);
            space.create(&on_node(pod("fixed", &["--http", "9040"], &ports), NODE))?;
            eventually("the jumps to be first again", || {
                ensure!(reordered()? > before, "not moved");
                Ok(())
            })?;
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
