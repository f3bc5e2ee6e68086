//! Builders of objects and requests.

use serde_json::{Value, json};

use super::caller::{Call, Form};
use super::{ANNOTATION, MARK, MARKED, PER_PORT, RESULT};

/// Where the product would run.
pub(crate) const SYSTEM: &str = "portmapping-system";

/// The path of a pod, or of a subresource of it.
pub(crate) fn pod_path(namespace: &str, pod: &str, subresource: &str) -> String {
    let mut path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
    if !subresource.is_empty() {
        path.push('/');
        path.push_str(subresource);
    }
    path
}

/// A pod that passes the restricted level and runs the test server.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": pod_spec(),
    })
}

pub(crate) fn pod_spec() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [{
            "name": "echo",
            "image": "localhost/echo:1",
            "imagePullPolicy": "IfNotPresent",
            "args": ["--http", "9040"],
            "ports": [{ "containerPort": 9040 }],
            "resources": { "requests": { "cpu": "1m" } },
            "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
            },
        }],
    })
}

/// The pod with these annotations.
pub(crate) fn annotated(mut pod: Value, annotations: Value) -> Value {
    pod["metadata"]["annotations"] = annotations;
    pod
}

/// The pod bound to a node from the start.
pub(crate) fn on_node(mut pod: Value, node: &str) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

/// A patch of annotations.
pub(crate) fn annotations(annotations: &Value) -> Value {
    json!({ "metadata": { "annotations": annotations } })
}

/// Our condition.
pub(crate) fn condition(status: &str, reason: &str) -> Value {
    json!({ "type": ANNOTATION, "status": status, "reason": reason, "lastTransitionTime": "2026-11-20T00:00:00Z" })
}

/// All that an enforcer writes, in one patch.
pub(crate) fn mapping() -> Value {
    json!({
        "metadata": { "annotations": { ANNOTATION: RESULT, MARK: MARKED, PER_PORT: "23817" } },
        "status": { "conditions": [condition("True", "Mapped")] },
    })
}

/// Creates an object in a collection.
pub(crate) fn post(path: impl Into<String>, body: Value) -> Call {
    Call {
        method: "POST",
        path: path.into(),
        form: Form::Json,
        body,
    }
}

/// Creates a pod.
pub(crate) fn create(namespace: &str, pod: Value) -> Call {
    post(format!("/api/v1/namespaces/{namespace}/pods"), pod)
}

/// A pod, or a subresource of it, that a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At(pub &'static str, pub &'static str, pub &'static str);

impl At {
    pub(crate) fn path(self) -> String {
        pod_path(self.0, self.1, self.2)
    }

    /// A strategic merge patch.
    pub(crate) fn patch(self, body: Value) -> Call {
        self.send("PATCH", Form::Strategic, body)
    }

    /// A merge patch, which replaces lists.
    pub(crate) fn merge(self, body: Value) -> Call {
        self.send("PATCH", Form::Merge, body)
    }

    /// A JSON patch.
    pub(crate) fn json_patch(self, body: Value) -> Call {
        self.send("PATCH", Form::JsonPatch, body)
    }

    /// A server-side apply of these fields.
    pub(crate) fn apply(self, manager: &str, mut body: Value) -> Call {
        body["apiVersion"] = json!("v1");
        body["kind"] = json!("Pod");
        body["metadata"]["name"] = json!(self.1);
        let mut call = self.send("PATCH", Form::Apply, body);
        call.path = format!("{}?fieldManager={manager}&force=true", call.path);
        call
    }

    /// A patch of annotations.
    pub(crate) fn note(self, key: &str, value: impl Into<Value>) -> Call {
        let mut all = json!({});
        all[key] = value.into();
        self.patch(annotations(&all))
    }

    pub(crate) fn post(self, body: Value) -> Call {
        post(self.path(), body)
    }

    pub(crate) fn get(self) -> Call {
        self.send("GET", Form::Json, Value::Null)
    }

    pub(crate) fn delete(self) -> Call {
        self.send("DELETE", Form::Json, Value::Null)
    }

    fn send(self, method: &'static str, form: Form, body: Value) -> Call {
        let path = self.path();
        Call {
            method,
            path,
            form,
            body,
        }
    }
}
