//! Which ports are mapped, and where do they answer?

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::outside::{Way, ask};
use crate::support::pods::{annotated, annotation, container, entries, mapped_pod, on_node, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, audit, eventually, node_addresses, shared};

#[test]
fn every_replica_of_a_deployment_answers_at_its_own_port() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-deployment", |space| {
            let mut template = mapped_pod("unused");
            template["spec"]["topologySpreadConstraints"] = json!([{
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": { "matchLabels": { "app": "hello" } },
            }]);
            space.create(&json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": { "name": "hello" },
                "spec": {
                    "replicas": 3,
                    "selector": { "matchLabels": { "app": "hello" } },
                    "template": {
                        "metadata": {
                            "labels": { "app": "hello" },
                            "annotations": template["metadata"]["annotations"],
                        },
                        "spec": template["spec"],
                    },
                },
            }))?;
            space.kubectl(&["rollout", "status", "deployment/hello", "--timeout=90s"])?;
            let pods = space.get(&["pods", "-l", "app=hello"])?;
            let pods = pods["items"].as_array().context("no list")?.clone();
            ensure!(pods.len() == 3, "{} pods instead of 3", pods.len());
            let mut seen = BTreeSet::new();
            for pod in &pods {
                let mapped = entries(pod)?;
                ensure!(mapped.len() == 1, "{mapped:?}");
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                ensure!(
                    mapped[0].pod_name == name && mapped[0].container_port == 9040,
                    "{mapped:?}"
                );
                ensure!(
                    Some(mapped[0].pod_ip.as_str()) == pod["status"]["podIP"].as_str(),
                    "{mapped:?}"
                );
                space.answers(pod, &mapped[0], Way::Http)?;
                let node = pod["spec"]["nodeName"].to_string();
                ensure!(
                    seen.insert((node, mapped[0].host_port)),
                    "two pods of one node share a port"
                );
            }
            let nodes: BTreeSet<_> = pods
                .iter()
                .map(|pod| pod["spec"]["nodeName"].to_string())
                .collect();
            ensure!(
                nodes.len() == 2,
                "three replicas did not spread over two nodes: {nodes:?}"
            );
            described(space, &pods[0])
        })
    })
}

/// What a user sees: the mapping on one line, the gate, the event.
fn described(space: &Space<'_>, pod: &Value) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().context("no name")?;
    let value = annotation(pod).context("no annotation")?;
    eventually("kubectl describe to show mapping, gate and event", || {
        let text = space.kubectl(&["describe", "pod", name])?;
        let line = format!("{ANNOTATION}: {value}");
        ensure!(
            text.lines().any(|l| l.ends_with(&line)),
            "no line {line:?} in:\n{text}"
        );
        let gate = |l: &str| l.split_whitespace().eq([ANNOTATION, "True"]);
        ensure!(text.lines().any(gate), "no gate in:\n{text}");
        let entry = &entries(pod)?[0];
        let reported = format!(":{} -> 9040/TCP", entry.host_port);
        let event = |l: &str| l.contains("PortsMapped") && l.contains(&reported);
        ensure!(text.lines().any(event), "no event in:\n{text}");
        Ok(())
    })
}

#[test]
fn all_ports_of_containers_and_sidecars_are_mapped_in_spec_order() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-many", |space| {
            let mut many = pod(
                "many",
                &["--http", "8000", "--udp", "8001"],
                &json!([{ "containerPort": 8001, "protocol": "UDP" }, { "containerPort": 8000 }]),
            );
            let mut second = container(&["--tcp", "8002"], &json!([{ "containerPort": 8002 }]));
            second["name"] = json!("second");
            many["spec"]["containers"]
                .as_array_mut()
                .context("containers")?
                .push(second);
            let mut sidecar = container(&["--tcp", "8003"], &json!([{ "containerPort": 8003 }]));
            sidecar["name"] = json!("sidecar");
            sidecar["restartPolicy"] = json!("Always");
            let mut init = container(
                &["--tcp", "8004", "--exit-after", "0"],
                &json!([{ "containerPort": 8004 }]),
            );
            init["name"] = json!("init");
            many["spec"]["initContainers"] = json!([init, sidecar]);
            space.create(&annotated(many, ""))?;
            let many = space.ready("many")?;
            let mapped = entries(&many)?;
            let order: Vec<_> = mapped
                .iter()
                .map(|e| (e.container_port, e.protocol.as_str()))
                .collect();
            ensure!(
                order == [(8001, "UDP"), (8000, "TCP"), (8002, "TCP"), (8003, "TCP")],
                "{order:?}"
            );
            let ways = [Way::Udp, Way::Http, Way::Tcp, Way::Tcp];
            for (entry, way) in mapped.iter().zip(ways) {
                space.answers(&many, entry, way)?;
            }
            Ok(())
        })
    })
}

#[test]
fn a_dual_stack_pod_answers_at_the_same_port_in_both_families() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-dual", |space| {
            space.create(&mapped_pod("dual"))?;
            let dual = space.ready("dual")?;
            let addresses = dual["status"]["podIPs"]
                .as_array()
                .context("no addresses")?;
            ensure!(
                addresses.len() == 2,
                "the cluster is not dual-stack: {addresses:?}"
            );
            let entry = entries(&dual)?.remove(0);
            let node = dual["status"]["hostIPs"]
                .as_array()
                .context("no node addresses")?;
            ensure!(node.len() == 2, "the node is not dual-stack: {node:?}");
            for address in node {
                let address = address["ip"].as_str().context("no address")?.parse()?;
                let endpoint = SocketAddr::new(address, entry.host_port);
                let answer = ask(cluster, Way::Http, endpoint)?;
                ensure!(answer == "dual", "{endpoint} answered {answer:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_request_for_some_ports_maps_those() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-some", |space| {
            let ports =
                json!([{ "name": "web", "containerPort": 8000 }, { "containerPort": 8001 }]);
            let some = pod(
                "some",
                &["--http", "8000", "--tcp", "8001", "--udp", "8002"],
                &ports,
            );
            let addresses = node_addresses(cluster)?;
            let (node, address) = addresses.first_key_value().context("no node")?;
            let request = format!(
                r#"[{{"containerPort":"web"}},{{"containerPort":8002,"protocol":"UDP","hostIP":"{address}"}}]"#
            );
            space.create(&on_node(annotated(some, &request), node))?;
            let some = space.ready("some")?;
            let mapped = entries(&some)?;
            ensure!(mapped.len() == 2, "{mapped:?}");
            ensure!(
                mapped[1].host_ip == *address && mapped[0].host_ip.is_empty(),
                "{mapped:?}"
            );
            space.answers(&some, &mapped[0], Way::Http)?;
            space.answers(&some, &mapped[1], Way::Udp)
        })
    })
}

#[test]
fn a_pod_on_the_host_network_is_listed_as_it_is() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-host-network", |space| {
            let mut host = pod(
                "host",
                &["--http", "18041"],
                &json!([{ "containerPort": 18041 }]),
            );
            host["spec"]["hostNetwork"] = json!(true);
            space.create(&annotated(host, ""))?;
            let host = space.ready("host")?;
            let mapped = entries(&host)?;
            ensure!(
                mapped[0].host_port == 18041 && mapped[0].container_port == 18041,
                "{mapped:?}"
            );
            ensure!(
                Some(mapped[0].pod_ip.as_str()) == host["status"]["hostIP"].as_str(),
                "{mapped:?}"
            );
            // a pod on the host network is named after its node
            let endpoint = space.endpoint(&host, &mapped[0])?;
            ask(cluster, Way::Http, endpoint).map(drop)
        })
    })
}

#[test]
fn a_static_host_port_is_listed_and_left_to_the_cni() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-static", |space| {
            let ports =
                json!([{ "containerPort": 8000, "hostPort": 18042 }, { "containerPort": 8001 }]);
            let fixed = pod("fixed", &["--http", "8000", "--tcp", "8001"], &ports);
            space.create(&annotated(fixed, ""))?;
            let fixed = space.ready("fixed")?;
            let mapped = entries(&fixed)?;
            ensure!(mapped[0].host_port == 18042, "{mapped:?}");
            ensure!(
                (20_000..30_000).contains(&mapped[1].host_port),
                "{mapped:?}"
            );
            space.answers(&fixed, &mapped[0], Way::Http)?;
            space.answers(&fixed, &mapped[1], Way::Tcp)
        })
    })
}

#[test]
fn a_mapping_costs_one_write_and_one_event() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "map-cost", |space| {
            const PODS: usize = 5;
            for index in 0..PODS {
                space.create(&mapped_pod(&format!("cost-{index}")))?;
            }
            for index in 0..PODS {
                space.ready(&format!("cost-{index}"))?;
            }
            eventually("every pod's event", || {
                let events = space.get(&["events"])?;
                let events = events["items"].as_array().context("no list")?;
                let mapped = events
                    .iter()
                    .filter(|event| event["reason"] == "PortsMapped")
                    .count();
                ensure!(mapped == PODS, "{mapped} events");
                Ok(())
            })?;
            let calls = audit::calls(cluster)?;
            let ours = calls.iter().filter(|call| {
                call["user"]["username"] == "system:serviceaccount:portmapping-system:enforcer"
                    && call["objectRef"]["namespace"] == "map-cost"
            });
            let mut counts = std::collections::BTreeMap::new();
            for call in ours {
                let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let object = &call["objectRef"];
                let key = [&call["verb"], &object["resource"], &object["subresource"]]
                    .map(word)
                    .join(" ");
                *counts.entry(key).or_insert(0) += 1;
            }
            let expected = [
                ("create events ".to_owned(), PODS),
                ("patch pods status".to_owned(), PODS),
            ];
            ensure!(
                counts == expected.into(),
                "calls of the enforcers: {counts:?}"
            );
            Ok(())
        })
    })
}
