//! The part of a pod that the decision needs. Decoding skips the rest.

use std::collections::BTreeSet;
use std::fmt;

use portmapping_shared::contract::{ANNOTATION, PER_PORT_PREFIX, REQUEST_MARK};
use portmapping_shared::{PodSpec, null_as_default};
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Per-port annotations of one pod; each of them costs a patch operation.
const MAX_PER_PORT: usize = 1024;

/// The part of core/v1 `Pod` that the decision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Annotations and name.
    #[serde(deserialize_with = "null_as_default")]
    pub metadata: Metadata,
    /// Ports and readiness gates.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: PodSpec,
}

/// The part of meta/v1 `ObjectMeta` that the decision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Empty if the API server will generate one.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// Prefix of a generated name.
    #[serde(deserialize_with = "null_as_default")]
    pub generate_name: String,
    /// The annotations of this project.
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: Annotations,
}

/// The annotations of this project on a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Annotations {
    /// The user's request.
    pub request: Option<String>,
    /// The request mark, from an earlier call of this webhook or from a user.
    pub mark: Option<String>,
    /// Keys of per-port annotations, copied from another pod.
    pub per_port: BTreeSet<String>,
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AnnotationsVisitor)
    }
}

struct AnnotationsVisitor;

impl<'de> Visitor<'de> for AnnotationsVisitor {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of annotations")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Annotations, M::Error> {
        let mut found = Annotations::default();
        while let Some(key) = map.next_key::<String>()? {
            // a null value is the empty string, as in Go
            match key.as_str() {
                ANNOTATION => {
                    found.request = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
                }
                REQUEST_MARK => {
                    found.mark = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
                }
                _ if !key.starts_with(PER_PORT_PREFIX) => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ if found.per_port.len() >= MAX_PER_PORT => {
                    return Err(de::Error::custom(
                        "more than 1024 annotations with the prefix host-port.tkestack.io/",
                    ));
                }
                _ => {
                    found.per_port.insert(key);
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
