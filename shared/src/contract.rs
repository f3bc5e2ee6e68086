//! Every string that other programs read. A change of one breaks users, policies or manifests.

/// The annotation a pod asks with and reads its result from; schema of tkestack/galaxy v1.0.4.
pub const ANNOTATION: &str = "tkestack.io/portmapping";
/// The resolved request: which container ports a pod asks for. It stays after the result has
/// replaced the user's text.
pub const REQUEST_MARK: &str = "tkestack.io/portmapping-request";
/// Prefix of annotations with one host port each.
pub const PER_PORT_PREFIX: &str = "host-port.tkestack.io/";
/// Type of the pod condition, and of the readiness gate that waits for it.
pub const CONDITION: &str = ANNOTATION;

/// Condition reason while every port of the pod is held, programmed and published.
pub const REASON_MAPPED: &str = "Mapped";
/// Condition reason while the range has too few free ports for the pod.
pub const REASON_NO_FREE_PORT: &str = "NoFreePort";
/// Condition reason while another process has a host port of the pod.
pub const REASON_PORT_CONFLICT: &str = "PortConflict";
/// Condition reason while a requested hostIP is not a host address of the node.
pub const REASON_HOST_IP_NOT_ON_NODE: &str = "HostIPNotOnNode";
/// Condition reason while the kernel refuses the pod's rules.
pub const REASON_DATAPLANE_ERROR: &str = "DataplaneError";
/// Condition reason while the node does not permit the enforcer to change rules.
pub const REASON_NOT_PERMITTED: &str = "NotPermitted";
/// Condition reason when the enforcer cannot read the annotation of a pod with a readiness gate.
pub const REASON_INVALID_REQUEST: &str = "InvalidRequest";
/// Condition reason of a pod that has ended or no longer asks.
pub const REASON_RELEASED: &str = "Released";

/// Event: the pod answers at its host ports.
pub const EVENT_MAPPED: &str = "PortsMapped";
/// Event: the pod's host ports were released.
pub const EVENT_RELEASED: &str = "PortsReleased";
/// Event: the enforcer repaired what another program had damaged.
pub const EVENT_REPAIRED: &str = "MappingRepaired";
/// Event: the annotation held a result that the enforcer did not write.
pub const EVENT_FORGED_RESULT: &str = "ForgedResult";
/// Event: another controller replaces the result by the request again and again.
pub const EVENT_ANNOTATION_CONTESTED: &str = "AnnotationContested";
/// Event: another program keeps its rules before those of the enforcer.
pub const EVENT_RULES_CONTESTED: &str = "RulesContested";
/// Event: a port of the pod gets no reply.
pub const EVENT_NO_REPLIES: &str = "NoReplies";
/// Event on a Node: its packet filter may drop what is forwarded to mapped pods.
pub const EVENT_FORWARD_DROPS: &str = "ForwardDrops";
/// Event on a Node: its network may take replies past the rules.
pub const EVENT_ROUTING_UNKNOWN: &str = "RoutingUnknown";
/// Event: the pod asks for its declared ports and declares none.
pub const EVENT_NO_PORTS: &str = "NoPorts";

/// Namespace the manifests install into.
pub const NAMESPACE: &str = "portmapping-system";
/// Name of the `MutatingWebhookConfiguration`.
pub const WEBHOOK_CONFIGURATION: &str = "portmapping";
/// Secret with the CA and the serving certificate of the webhook.
pub const TLS_SECRET: &str = "portmapping-webhook-tls";
/// Service in front of the webhook.
pub const WEBHOOK_SERVICE: &str = "webhook";
/// Field manager of what the enforcer writes.
pub const ENFORCER_MANAGER: &str = "portmapping-enforcer";
/// Field manager of what the webhook writes.
pub const WEBHOOK_MANAGER: &str = "portmapping-webhook";
/// Prefix of every metric.
pub const METRIC_PREFIX: &str = "portmapping";

/// Prefix of the name of our iptables chains.
pub const CHAIN_PREFIX: &str = "PORTMAPPING";
/// Name of our nftables table, of family inet.
pub const NFT_TABLE: &str = "portmapping";
/// Text before a pod's uid in the comment of a rule or map element that names the owner of mappings.
pub const RULE_COMMENT_PREFIX: &str = "portmapping:";

/// Ports that a pod may ask for, unless a flag sets another limit.
pub const DEFAULT_MAX_PORTS: usize = 64;
/// Ports that such a flag may permit at most: the request mark and the result of so many have their limits of
/// 16 KiB and 64 KiB, with the longest names and addresses too.
pub const MOST_PORTS: u64 = 128;
/// Longest request that is read, in bytes; the admission policy has the same limit.
pub const MAX_REQUEST_BYTES: usize = 16_384;

#[cfg(test)]
mod tests;
