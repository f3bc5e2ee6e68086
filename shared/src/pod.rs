//! The identity of a pod, and the part of its spec that this project reads.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::contract::CONDITION;

/// Containers of each kind that are read; no node runs as many in one pod.
const MAX_CONTAINERS: usize = 512;
/// Ports of one container that are read.
const MAX_PORTS: usize = 4_096;
/// Readiness gates that are read.
const MAX_GATES: usize = 1_024;

/// A pod's uid: 1-63 letters, digits and dashes, so that it may stand in a kernel rule's comment.
///
/// The API server creates RFC 9562 UUIDs; mirror pods of static pods have a 32-digit hash. The text
/// is stored inline: thousands of mappings hold a uid, and are copied and compared often.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid {
    /// The uid, then zeroes, so that the order is that of the text.
    bytes: [u8; MAX_UID],
    length: u8,
}

/// Longest uid, in bytes.
const MAX_UID: usize = 63;

impl PodUid {
    /// Returns the uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.length));
        // from_str accepts ASCII only
        bytes
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }
}

impl FromStr for PodUid {
    type Err = InvalidUid;

    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let mut bytes = [0; MAX_UID];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) if length > 0 && text.bytes().all(plain) => {
                place.copy_from_slice(text.as_bytes());
                Ok(Self { bytes, length })
            }
            _ => Err(InvalidUid(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PodUid").field(&self.as_str()).finish()
    }
}

impl Serialize for PodUid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Text that is not a pod uid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a pod uid: 1-63 letters, digits and dashes are needed")]
pub struct InvalidUid(String);

/// A pod, by namespace and name for people, by uid for programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod; a `StatefulSet` uses it again, so it is never a key.
    pub name: String,
    /// The key.
    pub uid: PodUid,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The part of core/v1 `PodSpec` that decides about ports; decoding skips the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Node the pod is bound to; empty before.
    #[serde(deserialize_with = "null_as_default")]
    pub node_name: String,
    /// Whether the pod listens on the node itself.
    #[serde(deserialize_with = "null_as_default")]
    pub host_network: bool,
    /// Main containers.
    #[serde(deserialize_with = "containers")]
    pub containers: Vec<Container>,
    /// Init containers; those with `restartPolicy: Always` are sidecars and run as long as the pod.
    #[serde(deserialize_with = "containers")]
    pub init_containers: Vec<Container>,
    /// Conditions that Ready waits for.
    #[serde(deserialize_with = "gates")]
    pub readiness_gates: Vec<ReadinessGate>,
    /// Operating system of the containers.
    #[serde(deserialize_with = "null_as_default")]
    pub os: PodOs,
    /// Labels that the node must have.
    #[serde(deserialize_with = "null_as_default")]
    pub node_selector: NodeSelector,
}

/// core/v1 `PodOS`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct PodOs {
    /// `linux`, `windows`, or empty for any.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
}

/// The part of a pod's `nodeSelector` that decides about ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct NodeSelector {
    /// Operating system of the node; empty for any.
    #[serde(rename = "kubernetes.io/os", deserialize_with = "null_as_default")]
    pub os: String,
}

/// The part of core/v1 `Container` that decides about ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// `Always` on a sidecar init container.
    #[serde(deserialize_with = "null_as_default")]
    pub restart_policy: String,
    /// Declared ports.
    #[serde(deserialize_with = "ports")]
    pub ports: Vec<DeclaredPort>,
}

/// core/v1 `ContainerPort`, with unchecked numbers: the API server validates them after the webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeclaredPort {
    /// Name that other objects refer to; empty if there is none.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Port in the pod.
    #[serde(deserialize_with = "null_as_default")]
    pub container_port: i64,
    /// Static host port; 0 if there is none.
    #[serde(deserialize_with = "null_as_default")]
    pub host_port: i64,
    /// Node address of the static host port; empty for all, and for a text that is no address. The API server does
    /// not limit that text.
    #[serde(rename = "hostIP", deserialize_with = "address")]
    pub host_ip: String,
    /// TCP, UDP, SCTP, or empty for TCP.
    #[serde(deserialize_with = "null_as_default")]
    pub protocol: String,
}

/// core/v1 `PodReadinessGate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReadinessGate {
    /// Type of the condition that must be True.
    #[serde(deserialize_with = "null_as_default")]
    pub condition_type: String,
}

impl PodSpec {
    /// Returns the containers whose ports count, in the order of the result: main containers, then
    /// sidecars. Plain init containers end before clients connect.
    pub fn lasting_containers(&self) -> impl Iterator<Item = &Container> {
        let sidecars = self
            .init_containers
            .iter()
            .filter(|c| c.restart_policy == "Always");
        self.containers.iter().chain(sidecars)
    }

    /// Returns whether the pod can only run on a Windows node.
    #[must_use]
    pub fn needs_windows(&self) -> bool {
        self.os.name == "windows" || self.node_selector.os == "windows"
    }

    /// Returns whether the pod has a readiness gate of this type.
    #[must_use]
    pub fn has_gate(&self, condition_type: &str) -> bool {
        self.readiness_gates
            .iter()
            .any(|gate| gate.condition_type == condition_type)
    }
}

/// Reads `null` as the default, as the API server writes empty lists and maps here and there;
/// serde's own default covers absence only.
pub fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Keeps no text that is no address: 4,096 long ones of each pod would take much memory.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text: String = null_as_default(deserializer)?;
    let is_address = text.parse::<IpAddr>().is_ok();
    Ok(if is_address { text } else { String::new() })
}

fn containers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Container>, D::Error> {
    bounded(deserializer, |_, before| before < MAX_CONTAINERS)
}

/// Drops entries without a valid port number: a few bytes of JSON each would take much memory.
fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DeclaredPort>, D::Error> {
    bounded(deserializer, |port: &DeclaredPort, before| {
        before < MAX_PORTS && (1..=65_535).contains(&port.container_port)
    })
}

/// Keeps our own gate beyond the limit: otherwise the webhook would add a second one.
fn gates<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ReadinessGate>, D::Error> {
    bounded(deserializer, |gate: &ReadinessGate, before| {
        before < MAX_GATES || before == MAX_GATES && gate.condition_type == CONDITION
    })
}

/// Reads a list, or null as an empty one, and keeps the elements that `keep` accepts; `keep` also
/// gets the number of elements kept so far. The others are dropped and are no error: one absurd pod
/// must not make a list of all pods unreadable.
fn bounded<'de, D, T>(deserializer: D, keep: fn(&T, usize) -> bool) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T>(fn(&T, usize) -> bool);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list or null")
        }

        fn visit_unit<E: de::Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut kept = Vec::new();
            while let Some(element) = list.next_element()? {
                if (self.0)(&element, kept.len()) {
                    kept.push(element);
                }
            }
            Ok(kept)
        }
    }

    deserializer.deserialize_any(Bounded(keep))
}

#[cfg(test)]
mod tests;
