//! What can be wrong with an installation, in words, and where each fault is read from.

use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::ResourceExt;

use crate::conditions::{is_true, message};

/// A fault, with what to do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error(
        "the registration {0} does not exist: no pod reaches the webhook. Install portmapping again"
    )]
    NoRegistration(&'static str),
    #[error(
        "the caBundle of the registration {0} is empty: the API server trusts no webhook. The webhook writes it \
         (with cert-manager: its cainjector); look at its log"
    )]
    NoCaBundle(&'static str),
    #[error(
        "the admission policy {0} or its binding does not exist: what it forbids is possible. \
         Install portmapping again"
    )]
    NoPolicy(&'static str),
    #[error(
        "the admission policy {policy} does not name the account {account}: it refuses what this account must write, \
         or allows it everything. For another namespace use manifests/transformers/namespace, or the chart"
    )]
    OtherAccount {
        policy: &'static str,
        account: String,
    },
    #[error(
        "pods of {owner} are not created: {message}. If Pod Security forbids them: kubectl label namespace \
         {namespace} pod-security.kubernetes.io/enforce=privileged --overwrite"
    )]
    FailedCreate {
        owner: String,
        namespace: String,
        message: String,
    },
    #[error("no enforcer runs on node {node}: {why}. Pods there are not mapped")]
    NoEnforcer { node: String, why: String },
    #[error(
        "the API server cannot reach the webhook: {0}. Does the webhook run, and does the firewall between the \
         control plane and the nodes let its port through? The Helm value webhook.hostNetwork helps where the \
         control plane cannot reach pods"
    )]
    WebhookUnreachable(String),
    #[error(
        "the webhook did not see a pod (failurePolicy Ignore): it does not answer, or its registration is not used"
    )]
    WebhookSkipped,
    #[error("the API server refused a pod with the annotation: {0}")]
    PodRefused(String),
    #[error("a pod on node {node} was not mapped: {why}")]
    NotMapped { node: String, why: String },
    #[error("{from} cannot reach {to} on node {node}: {why}")]
    Unreachable {
        from: String,
        to: String,
        node: String,
        why: String,
    },
}

/// Returns the name of a service account as the API server sees it.
pub(super) fn account(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

pub(super) fn of_registration(
    name: &'static str,
    found: Option<&MutatingWebhookConfiguration>,
) -> Option<Fault> {
    let Some(found) = found else {
        return Some(Fault::NoRegistration(name));
    };
    let mut webhooks = found.webhooks.iter().flatten();
    let empty = |bundle: &Option<k8s_openapi::ByteString>| {
        bundle.as_ref().is_none_or(|bytes| bytes.0.is_empty())
    };
    let without = webhooks.any(|webhook| empty(&webhook.client_config.ca_bundle));
    without.then_some(Fault::NoCaBundle(name))
}

pub(super) fn of_policy(
    name: &'static str,
    found: Option<&ValidatingAdmissionPolicy>,
    bound: bool,
    account: String,
) -> Option<Fault> {
    let Some(found) = found.filter(|_| bound) else {
        return Some(Fault::NoPolicy(name));
    };
    let spec = found.spec.as_ref();
    let conditions = spec.and_then(|spec| spec.match_conditions.as_ref());
    let quoted = format!("'{account}'");
    let names = |expression: &str| expression.contains(&quoted);
    let mut conditions = conditions.into_iter().flatten();
    if conditions.any(|condition| names(&condition.expression)) {
        return None;
    }
    Some(Fault::OtherAccount {
        policy: name,
        account,
    })
}

/// Why a workload that lacks pods lacks them. Events are kept for an hour, so those of a workload
/// that lacks none are old.
pub(super) fn of_missing_pods(
    set: Option<&DaemonSet>,
    webhook: Option<&Deployment>,
    events: &[Event],
) -> Vec<Fault> {
    let mut lacking = Vec::new();
    let counts = set.and_then(|set| set.status.as_ref());
    if counts.is_some_and(|it| it.current_number_scheduled < it.desired_number_scheduled) {
        lacking.push(("DaemonSet", "enforcer"));
    }
    let replicas = |it: &Deployment| {
        let wanted = it.spec.as_ref().and_then(|spec| spec.replicas);
        wanted > it.status.as_ref().and_then(|status| status.replicas)
    };
    if webhook.is_some_and(replicas) {
        lacking.push(("ReplicaSet", "webhook-"));
    }
    let fault = |(kind, name): (&str, &str)| {
        let of_it = events.iter().filter(|event| {
            let object = &event.involved_object;
            event.reason.as_deref() == Some("FailedCreate")
                && object.kind.as_deref() == Some(kind)
                && object
                    .name
                    .as_deref()
                    .is_some_and(|it| it.starts_with(name))
        });
        let last = of_it.max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))?;
        Some(Fault::FailedCreate {
            owner: format!(
                "{kind} {}",
                last.involved_object.name.as_deref().unwrap_or(name)
            ),
            namespace: last.namespace().unwrap_or_default(),
            message: last.message.clone().unwrap_or_default(),
        })
    };
    lacking.into_iter().filter_map(fault).collect()
}

/// The Ready nodes on which no enforcer is Ready.
pub(super) fn of_nodes(nodes: &[Node], enforcers: &[Pod]) -> Vec<Fault> {
    let on = |pod: &&Pod, node: &str| {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
    };
    let fault = |node: &Node| {
        let name = node.name_any();
        let mut here = enforcers.iter().filter(|pod| on(pod, &name)).peekable();
        if here.peek().is_none() {
            let why = "the DaemonSet enforcer has no pod there (its node selector, affinity or tolerations?)";
            return Some((name, why.to_owned()));
        }
        let pods: Vec<_> = here.collect();
        if pods.iter().any(|pod| is_true(pod, "Ready")) {
            return None;
        }
        let why = pods.first().map(|pod| {
            let (pod, why) = (pod.name_any(), message(pod));
            format!("its pod {pod} is not Ready ({why}); look at its log")
        });
        Some((name, why.unwrap_or_default()))
    };
    let faults = nodes.iter().filter_map(fault);
    faults
        .map(|(node, why)| Fault::NoEnforcer { node, why })
        .collect()
}

/// What the API server's refusal of an annotated pod means.
pub(super) fn of_refusal(text: &str) -> Fault {
    if text.contains("failed calling webhook") {
        Fault::WebhookUnreachable(text.to_owned())
    } else {
        Fault::PodRefused(text.to_owned())
    }
}

#[cfg(test)]
mod tests;
