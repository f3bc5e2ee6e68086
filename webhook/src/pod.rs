//! The part of a pod that the decision needs; everything else is skipped while decoding.

use std::collections::BTreeSet;
use std::fmt;

use portmapping_shared::contract::{ANNOTATION, PER_PORT_PREFIX, REQUEST_MARK};
use portmapping_shared::{PodSpec, null_as_default};
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Per-port annotations that are looked at: each of them costs a patch operation.
const MAX_PER_PORT: usize = 1024;

/// A pod as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Marks and name.
    #[serde(deserialize_with = "null_as_default")]
    pub metadata: Metadata,
    /// Ports and gates.
    #[serde(deserialize_with = "null_as_default")]
    pub spec: PodSpec,
}

/// The pod's metadata as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Empty where the API server will make one.
    #[serde(deserialize_with = "null_as_default")]
    pub name: String,
    /// What the name will begin with.
    #[serde(deserialize_with = "null_as_default")]
    pub generate_name: String,
    /// Our own annotations.
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: Annotations,
}

/// The annotations of ours that a pod carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Annotations {
    /// What the user asks for.
    pub asked: Option<String>,
    /// The request mark: made by an earlier pass, or by somebody who should not.
    pub mark: Option<String>,
    /// Keys of per-port annotations: leftovers of another pod.
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
        while let Some(key) = map.next_key::<Key>()? {
            // null is the empty string, as in Go
            match key {
                Key::Asked => {
                    found.asked = Some(map.next_value::<Option<_>>()?.unwrap_or_default());
                }
                Key::Mark => found.mark = Some(map.next_value::<Option<_>>()?.unwrap_or_default()),
                Key::PerPort(_) if found.per_port.len() >= MAX_PER_PORT => {
                    return Err(de::Error::custom("more per-port annotations than ports"));
                }
                Key::PerPort(key) => {
                    found.per_port.insert(key);
                    map.next_value::<IgnoredAny>()?;
                }
                Key::Foreign => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// An annotation's key; foreign ones cost no allocation.
enum Key {
    Asked,
    Mark,
    PerPort(String),
    Foreign,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an annotation's key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Key, E> {
        Ok(match key {
            ANNOTATION => Key::Asked,
            REQUEST_MARK => Key::Mark,
            _ if key.starts_with(PER_PORT_PREFIX) => Key::PerPort(key.to_owned()),
            _ => Key::Foreign,
        })
    }
}

#[cfg(test)]
mod tests;
