//! A pod of which only the fields that decide about ports are decoded. Others may be large: a user may
//! write 256 KiB of annotations on each pod, and their owners in managedFields take as much again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    FieldsV1, ManagedFieldsEntry, ObjectMeta, Time,
};
use kube::Resource;
use portmapping_shared::PodSpec;
use portmapping_shared::contract::{ANNOTATION, REQUEST_MARK};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::json;

use super::{CONFIG_HASH, CONFIG_MIRROR, PodStatus};

/// A pod without what does not concern ports; its metadata has no other annotations, and its
/// managedFields tell only who wrote the annotation.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SlimPod {
    #[serde(deserialize_with = "metadata")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: PodSpec,
    #[serde(default)]
    pub(crate) status: Option<PodStatus>,
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

/// The fields of `ObjectMeta` that are read; decoding skips the rest.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<Time>,
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
    time: Option<Time>,
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

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let read = Metadata::deserialize(deserializer)?;
    let entries = read.managed_fields.unwrap_or_default();
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        deletion_timestamp: read.deletion_timestamp,
        annotations: read.annotations.map(|kept| kept.0),
        managed_fields: Some(entries.into_iter().filter_map(writer).collect()),
        ..ObjectMeta::default()
    })
}

/// Returns the entry if it is about the annotation.
fn writer(entry: ManagedFields) -> Option<ManagedFieldsEntry> {
    entry.fields_v1?.metadata?.annotations?.annotation?;
    let field = format!("f:{ANNOTATION}");
    let fields = json!({ "f:metadata": { "f:annotations": { field: {} } } });
    Some(ManagedFieldsEntry {
        manager: entry.manager,
        time: entry.time,
        fields_v1: Some(FieldsV1(fields)),
        ..ManagedFieldsEntry::default()
    })
}
