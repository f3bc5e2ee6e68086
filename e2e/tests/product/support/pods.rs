//! Pods as tests make and read them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::outside::{Way, ask};
use super::space::Space;
use super::{ANNOTATION, eventually, node_addresses};

/// An entry of the published annotation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MappedPort {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: String,
    #[serde(rename = "hostIP", default)]
    pub host_ip: String,
    pub pod_name: String,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
}

/// A pod of the echo server with these arguments and declared ports.
pub(crate) fn pod(name: &str, arguments: &[&str], ports: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container(arguments, ports)],
        },
    })
}

/// A container of the echo server.
pub(crate) fn container(arguments: &[&str], ports: &Value) -> Value {
    json!({
        "name": "echo",
        "image": "localhost/echo:1",
        "imagePullPolicy": "IfNotPresent",
        "args": arguments,
        "ports": ports,
    })
}

/// The usual pod: HTTP on 9040, all ports mapped.
pub(crate) fn mapped_pod(name: &str) -> Value {
    annotated(
        pod(
            name,
            &["--http", "9040"],
            &json!([{ "containerPort": 9040 }]),
        ),
        "",
    )
}

/// The pod with our annotation.
pub(crate) fn annotated(mut pod: Value, value: &str) -> Value {
    pod["metadata"]["annotations"][ANNOTATION] = json!(value);
    pod
}

/// The pod bound to a node from the start.
pub(crate) fn on_node(mut pod: Value, node: &str) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

pub(crate) fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
}

pub(crate) fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition["status"] == "True")
}

pub(crate) fn annotation(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"][ANNOTATION].as_str()
}

/// The published mapping of a pod.
pub(crate) fn entries(pod: &Value) -> Result<Vec<MappedPort>> {
    let value = annotation(pod).context("the pod has no annotation")?;
    serde_json::from_str(value).with_context(|| format!("{value:?} is no published mapping"))
}

impl Space<'_> {
    /// The pod as it is now.
    pub(crate) fn pod(&self, name: &str) -> Result<Value> {
        self.get(&["pod", name])
    }

    /// Waits until the pod is Ready and mapped.
    pub(crate) fn ready(&self, name: &str) -> Result<Value> {
        eventually(&format!("pod {name} to be Ready and mapped"), || {
            let pod = self.pod(name)?;
            ensure!(
                is_true(&pod, "Ready"),
                "not Ready: {}",
                pod["status"]["conditions"]
            );
            ensure!(
                is_true(&pod, ANNOTATION),
                "not mapped: {}",
                pod["status"]["conditions"]
            );
            entries(&pod)?;
            Ok(pod)
        })
    }

    /// Waits until the pod is mapped, whether it is Ready or not.
    pub(crate) fn mapped(&self, name: &str) -> Result<Value> {
        eventually(&format!("pod {name} to be mapped"), || {
            let pod = self.pod(name)?;
            ensure!(
                is_true(&pod, ANNOTATION),
                "not mapped: {}",
                pod["status"]["conditions"]
            );
            entries(&pod)?;
            Ok(pod)
        })
    }

    /// Where an entry of a pod is reached from outside.
    pub(crate) fn endpoint(&self, pod: &Value, entry: &MappedPort) -> Result<SocketAddr> {
        let node = pod["spec"]["nodeName"]
            .as_str()
            .context("the pod has no node")?;
        let addresses = node_addresses(self.cluster)?;
        let address = addresses
            .get(node)
            .with_context(|| format!("no address of {node}"))?;
        Ok(SocketAddr::new(address.parse()?, entry.host_port))
    }

    /// Asks one mapped port of a pod from outside; the answer must be the pod's name.
    pub(crate) fn answers(&self, pod: &Value, entry: &MappedPort, way: Way) -> Result<()> {
        let endpoint = self.endpoint(pod, entry)?;
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let answer = ask(self.cluster, way, endpoint)?;
        ensure!(
            answer == name,
            "{endpoint} answered {answer:?} instead of {name:?}"
        );
        Ok(())
    }

    /// The reasons of the events on an object, oldest first.
    pub(crate) fn events(&self, name: &str) -> Result<Vec<(String, String)>> {
        let selector = format!("involvedObject.name={name}");
        let events = self.get(&["events", "--field-selector", &selector])?;
        let events = events["items"].as_array().context("no list of events")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(events
            .iter()
            .map(|event| (text(&event["reason"]), text(&event["message"])))
            .collect())
    }
}
