//! The conditions of nodes and pods.

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition of the pod is True.
pub(crate) fn is_true(pod: &Pod, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|condition| condition.status == "True")
}

/// Why the pod is not Ready, as far as its status says it.
pub(crate) fn message(pod: &Pod) -> String {
    let ours = condition(pod, portmapping_shared::contract::CONDITION);
    let others = ["PodScheduled", "ContainersReady", "Ready"];
    let first = others
        .iter()
        .filter_map(|kind| condition(pod, kind))
        .find(|condition| condition.status != "True");
    let status = pod.status.as_ref();
    let own = status.and_then(|status| status.message.clone().or_else(|| status.reason.clone()));
    ours.filter(|condition| condition.status != "True")
        .or(first)
        .and_then(|condition| condition.message.clone())
        .or(own)
        .unwrap_or_else(|| "it has no condition yet".to_owned())
}

/// Whether the node is Ready.
pub(crate) fn is_up(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|it| it.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}
