//! The pods of the test. They run this program, from the image of the pod that makes them.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::Pod;
use portmapping_shared::contract::ANNOTATION;
use serde_json::{Value, json};

/// Label of all pods of the test.
pub(super) const TEST_PODS: &str = "app.kubernetes.io/component=test-pod";
/// Label that tells a mapped pod from a client.
pub(super) const ROLE: &str = "portmapping.tkestack.io/test";
/// A pod that is mapped.
pub(super) const MAPPED: &str = "mapped";
/// A pod that reaches a mapped one.
pub(super) const CLIENT: &str = "client";
/// Port of a mapped pod.
const PORT: u16 = 8080;

/// What all pods of the test have in common with the one that makes them.
pub(super) struct Template {
    image: Value,
    pull_policy: Value,
    pull_secrets: Value,
}

impl Template {
    /// Returns the template from the pod that makes the others; None if it has no container.
    pub(super) fn of(own: &Pod) -> Option<Self> {
        let spec = own.spec.as_ref()?;
        let container = spec.containers.first()?;
        Some(Self {
            image: json!(container.image),
            pull_policy: json!(container.image_pull_policy),
            pull_secrets: json!(spec.image_pull_secrets),
        })
    }

    /// A mapped pod on a node.
    pub(super) fn mapped(&self, index: usize, node: &str) -> Value {
        let name = format!("portmapping-test-{index}");
        let args = json!(["test-answer", "--name", name, "--port", PORT.to_string()]);
        let mut pod = self.pod(&name, node, MAPPED, &args);
        pod["metadata"]["annotations"][ANNOTATION] = json!("");
        pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": PORT }]);
        pod
    }

    /// A pod in the network of a node that reaches a mapped pod.
    pub(super) fn client(&self, index: usize, node: &str, to: SocketAddr, name: &str) -> Value {
        let args = json!(["test-reach", "--name", name, "--address", to.to_string()]);
        let mut pod = self.pod(&client_name(index), node, CLIENT, &args);
        pod["spec"]["hostNetwork"] = json!(true);
        pod
    }

    fn pod(&self, name: &str, node: &str, role: &str, args: &Value) -> Value {
        let (key, value) = TEST_PODS.split_once('=').unwrap_or_default();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {
                    key: value,
                    ROLE: role,
                    "sidecar.istio.io/inject": "false",
                    "istio.io/dataplane-mode": "none",
                },
                "annotations": { "linkerd.io/inject": "disabled" },
            },
            "spec": {
                "nodeName": node, // also on nodes that the scheduler would not choose
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 1,
                "tolerations": [{ "operator": "Exists" }],
                "imagePullSecrets": self.pull_secrets,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "seccompProfile": { "type": "RuntimeDefault" },
                },
                "containers": [{
                    "name": "test",
                    "image": self.image,
                    "imagePullPolicy": self.pull_policy,
                    "args": args,
                    "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": { "drop": ["ALL"] },
                    },
                }],
            },
        })
    }
}

/// The name of a client.
pub(super) fn client_name(index: usize) -> String {
    format!("portmapping-test-client-{index}")
}

#[cfg(test)]
mod tests;
