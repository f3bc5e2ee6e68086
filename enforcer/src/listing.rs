//! Lists of objects of all nodes, for jobs with little memory.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::{Node, NodeStatus, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;

/// Objects in one answer of the API server. A Node object has 20 KiB and more.
const PAGE: u32 = 500;

/// Lists objects page by page, and keeps of each what `slim` leaves: those of thousands of nodes are more
/// than a job has memory for.
pub(crate) async fn list<K>(
    api: &Api<K>,
    params: ListParams,
    slim: fn(K) -> K,
) -> kube::Result<Vec<K>>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items.into_iter().map(slim));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Keeps name and conditions.
pub(crate) fn slim_node(node: Node) -> Node {
    let conditions = node.status.and_then(|status| status.conditions);
    Node {
        metadata: name_of(node.metadata),
        status: Some(NodeStatus {
            conditions,
            ..NodeStatus::default()
        }),
        ..Node::default()
    }
}

/// Keeps name, annotations, owners, node and status.
pub(crate) fn slim_pod(mut pod: Pod) -> Pod {
    let node_name = pod.spec.and_then(node_of);
    Pod {
        metadata: ObjectMeta {
            annotations: pod.metadata.annotations.take(),
            owner_references: pod.metadata.owner_references.take(),
            ..name_of(pod.metadata)
        },
        spec: Some(PodSpec {
            node_name,
            ..PodSpec::default()
        }),
        status: pod.status,
    }
}

/// The node of a `DaemonSet`'s pod, also before the pod is scheduled.
fn node_of(spec: PodSpec) -> Option<String> {
    let wanted = || {
        let nodes = spec.affinity?.node_affinity?;
        let nodes = nodes.required_during_scheduling_ignored_during_execution?;
        let mut fields = nodes.node_selector_terms.into_iter();
        let mut fields = fields.find_map(|term| term.match_fields)?.into_iter();
        fields
            .find(|field| field.key == "metadata.name")?
            .values?
            .pop()
    };
    spec.node_name.or_else(wanted)
}

fn name_of(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name,
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests;
