//! Whether a cluster takes pods.

use anyhow::Result;
use serde_json::Value;

use crate::api::{Api, Refused};

/// What is still missing until the cluster takes pods on all these nodes; `None` when nothing is.
/// A node whose last heartbeat is `stale` has not come back yet.
pub(crate) fn missing(api: &Api, nodes: &[String], stale: Option<&str>) -> Result<Option<String>> {
    let list = api.get("/api/v1/nodes")?;
    for name in nodes {
        let mut items = list["items"].as_array().into_iter().flatten();
        let Some(node) = items.find(|node| node["metadata"]["name"] == **name) else {
            return Ok(Some(format!("{name} has not registered")));
        };
        let heartbeat = heartbeat_of(node);
        if heartbeat.is_none() || heartbeat == stale {
            return Ok(Some(format!("{name} is not Ready")));
        }
        if let Some(taint) = node["spec"]["taints"][0]["key"].as_str() {
            return Ok(Some(format!("{name} still has the taint {taint}")));
        }
    }
    let account = get(api, "/api/v1/namespaces/default/serviceaccounts/default")?;
    Ok(account
        .is_none()
        .then(|| "no service account default/default".to_owned()))
}

/// The time of a node's last heartbeat while it was Ready.
pub(crate) fn heartbeat(api: &Api, node: &str) -> Result<Option<String>> {
    let node = get(api, &format!("/api/v1/nodes/{node}"))?;
    Ok(node.as_ref().and_then(heartbeat_of).map(str::to_owned))
}

fn get(api: &Api, path: &str) -> Result<Option<Value>> {
    match api.get(path) {
        Ok(object) => Ok(Some(object)),
        Err(error) => match error.downcast_ref::<Refused>() {
            Some(Refused { code: 404, .. }) => Ok(None),
            _ => Err(error),
        },
    }
}

fn heartbeat_of(node: &Value) -> Option<&str> {
    let conditions = node["status"]["conditions"].as_array()?;
    let ready = conditions
        .iter()
        .find(|one| one["type"] == "Ready" && one["status"] == "True")?;
    ready["lastHeartbeatTime"].as_str()
}
