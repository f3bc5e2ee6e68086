//! The Secret that all replicas share: read, created empty, written by compare-and-swap.
//!
//! It is created by a server-side apply without data, because RBAC can limit only that way of
//! creation to one name. It is filled by a merge patch that carries the version that was read: of
//! two replicas one wins, the other gets a conflict and reads again. A late empty apply removes no
//! data, because the fields of the patch belong to another manager operation (`Update`).

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use portmapping_runtime::{CallError, within};
use portmapping_shared::contract::WEBHOOK_MANAGER;
use serde_json::json;

use crate::material::Material;

/// Limit for one call to the API server.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(5);

// the names that cert-manager uses too
const CA_BUNDLE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";

/// What the store holds, and the version that replacing it needs.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The resourceVersion; changes with every write.
    pub version: String,
    /// The certificates; missing parts are empty.
    pub material: Material,
}

/// How a compare-and-swap ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// Written.
    Done,
    /// Another program wrote or deleted it since it was read: read again.
    Conflict,
}

/// Where replicas agree on one certificate.
pub trait Store: Send + Sync {
    /// Reads the material; None if there is no Secret.
    fn read(&self) -> impl Future<Output = Result<Option<Stored>, StoreError>> + Send;
    /// Creates an empty Secret if there is none, and returns what is there then.
    fn create(&self) -> impl Future<Output = Result<Stored, StoreError>> + Send;
    /// Replaces the material if the version is still the one that was read.
    fn replace(
        &self,
        seen: &str,
        material: &Material,
    ) -> impl Future<Output = Result<Swap, StoreError>> + Send;
}

/// Why a call for the Secret failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading.
    #[error("cannot read Secret {name}")]
    Read {
        /// namespace/name.
        name: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
    /// Creating.
    #[error("cannot create Secret {name}")]
    Create {
        /// namespace/name.
        name: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
    /// Writing.
    #[error("cannot write Secret {name}")]
    Write {
        /// namespace/name.
        name: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
}

/// A Secret of the cluster. Needs the verbs get, patch and create on it, by name.
#[derive(Clone)]
pub struct SecretStore {
    api: Api<Secret>,
    namespace: String,
    name: String,
}

impl SecretStore {
    /// Returns the Secret of this name.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        let api = Api::namespaced(client, namespace);
        Self {
            api,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Store for SecretStore {
    async fn read(&self) -> Result<Option<Stored>, StoreError> {
        let found = within(CALL_LIMIT, "GET", self.api.get_opt(&self.name)).await;
        let found = found.map_err(|source| StoreError::Read {
            name: self.full_name(),
            source,
        })?;
        Ok(found.map(stored))
    }

    async fn create(&self) -> Result<Stored, StoreError> {
        let empty = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": { "app.kubernetes.io/name": "portmapping" },
            },
            "type": "Opaque",
        });
        let params = PatchParams::apply(WEBHOOK_MANAGER).force();
        let patch = Patch::Apply(&empty);
        let call = self.api.patch(&self.name, &params, &patch);
        let created = within(CALL_LIMIT, "apply", call).await;
        created.map(stored).map_err(|source| StoreError::Create {
            name: self.full_name(),
            source,
        })
    }

    async fn replace(&self, seen: &str, material: &Material) -> Result<Swap, StoreError> {
        let data = json!({
            CA_BUNDLE: STANDARD.encode(&material.ca_bundle),
            CA_KEY: STANDARD.encode(&material.ca_key),
            LEAF: STANDARD.encode(&material.leaf),
            LEAF_KEY: STANDARD.encode(&material.leaf_key),
        });
        let patch = Patch::Merge(json!({ "metadata": { "resourceVersion": seen }, "data": data }));
        let params = patch_params();
        let call = self.api.patch(&self.name, &params, &patch);
        swapped(within(CALL_LIMIT, "patch", call).await).map_err(|source| StoreError::Write {
            name: self.full_name(),
            source,
        })
    }
}

pub(crate) fn patch_params() -> PatchParams {
    PatchParams {
        field_manager: Some(WEBHOOK_MANAGER.to_owned()),
        ..Default::default()
    }
}

/// Tells how a patch that carried a version ended: 409 means that there is another version, 404
/// that the object is gone.
pub(crate) fn swapped<T>(
    answer: Result<T, CallError<kube::Error>>,
) -> Result<Swap, CallError<kube::Error>> {
    match answer {
        Ok(_written) => Ok(Swap::Done),
        Err(CallError::Failed {
            source: kube::Error::Api(status),
            ..
        }) if matches!(status.code, 404 | 409) => Ok(Swap::Conflict),
        Err(error) => Err(error),
    }
}

fn stored(secret: Secret) -> Stored {
    let mut data: BTreeMap<String, ByteString> = secret.data.unwrap_or_default();
    // bytes that are not UTF-8 are not PEM either
    let mut part = |key| {
        data.remove(key)
            .and_then(|bytes| String::from_utf8(bytes.0).ok())
            .unwrap_or_default()
    };
    Stored {
        version: secret.metadata.resource_version.unwrap_or_default(),
        material: Material {
            ca_bundle: part(CA_BUNDLE),
            ca_key: part(CA_KEY),
            leaf: part(LEAF),
            leaf_key: part(LEAF_KEY),
        },
    }
}

#[cfg(test)]
mod tests;
