//! A pod of which only the fields that decide about ports are decoded. Others may be large: a user may
//! write 256 KiB of annotations on each pod, and their owners in managedFields take as much again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portmapping_shared::PodSpec;
use portmapping_shared::contract::{ANNOTATION, ENFORCER_MANAGER, REQUEST_MARK};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{CONFIG_HASH, CONFIG_MIRROR, PodStatus};

/// A pod without what does not concern ports; its metadata has no other annotations.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Decoded")]
pub(crate) struct SlimPod {
    pub(crate) metadata: ObjectMeta,
    pub(crate) deleting: bool,
    /// Who, other than the enforcer, wrote the annotation last.
    pub(crate) annotation_manager: Option<String>,
    pub(crate) spec: PodSpec,
    pub(crate) status: Option<PodStatus>,
}

/// A pod as it is decoded.
#[derive(Deserialize)]
struct Decoded {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: Option<PodStatus>,
}

impl Resource for SlimPod {
    type DynamicType = ();
    type Scope = <Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The fields of `ObjectMeta` that are read; decoding skips the rest. Times stay text: a user may write some
/// of them, and the API server takes times that a Rust type does not, so that no list of the node's pods
/// could be decoded.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<IgnoredAny>,
    annotations: Option<Annotations>,
    managed_fields: Option<Vec<ManagedFields>>,
}

/// The annotations that are read.
const KEPT: [&str; 4] = [ANNOTATION, REQUEST_MARK, CONFIG_HASH, CONFIG_MIRROR];

#[derive(Default)]
struct Annotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(KeptAnnotations)
    }
}

struct KeptAnnotations;

impl<'de> Visitor<'de> for KeptAnnotations {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut kept = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if KEPT.contains(&key.as_str()) {
                kept.insert(key, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Annotations(kept))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ManagedFields {
    manager: Option<String>,
    /// In UTC and without fractions, so that texts are in the order of times.
    time: Option<String>,
    fields_v1: Option<Fields>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    #[serde(rename = "f:metadata")]
    metadata: Option<MetadataFields>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetadataFields {
    #[serde(rename = "f:annotations")]
    annotations: Option<AnnotationFields>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AnnotationFields {
    // the key is that of `contract`; a test fails if they differ
    #[serde(rename = "f:tkestack.io/portmapping")]
    annotation: Option<IgnoredAny>,
}

impl ManagedFields {
    fn has_annotation(&self) -> bool {
        let metadata = self
            .fields_v1
            .as_ref()
            .and_then(|all| all.metadata.as_ref());
        let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
        annotations.is_some_and(|annotations| annotations.annotation.is_some())
    }
}

impl From<Decoded> for SlimPod {
    fn from(pod: Decoded) -> Self {
        let Metadata {
            name,
            namespace,
            uid,
            resource_version,
            deletion_timestamp,
            annotations,
            managed_fields,
        } = pod.metadata;
        let others = managed_fields.into_iter().flatten().filter(|entry| {
            entry.manager.as_deref() != Some(ENFORCER_MANAGER) && entry.has_annotation()
        });
        let last = others.max_by(|one, other| one.time.cmp(&other.time));
        Self {
            metadata: ObjectMeta {
                name,
                namespace,
                uid,
                resource_version,
                annotations: annotations.map(|kept| kept.0),
                ..ObjectMeta::default()
            },
            deleting: deletion_timestamp.is_some(),
            annotation_manager: last.and_then(|entry| entry.manager),
            spec: pod.spec,
            status: pod.status,
        }
    }
}
