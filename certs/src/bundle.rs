//! The caBundle of the webhook's registration: whom the API server trusts.
//!
//! Written by a strategic merge patch that names nothing but the caBundle of our own entries. The
//! manifests do not mention the caBundle, so applying them again leaves it alone.

use std::future::Future;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use portmapping_runtime::{CallError, within};
use portmapping_shared::contract::WEBHOOK_MANAGER;
use serde_json::{Value, json};

use crate::secret::{CALL_LIMIT, Swap, is_conflict, is_gone};

/// The registration as far as it is ours.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Opaque; changes with every write.
    pub version: String,
    /// Our entries.
    pub entries: Vec<Entry>,
}

/// One webhook that points at our service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, unique in the registration.
    pub name: String,
    /// Whom the API server trusts when calling it; PEM text, empty for the system's roots.
    pub ca_bundle: Vec<u8>,
}

impl Seen {
    /// Whether the API server trusts exactly this bundle. No entry of ours is not in place: then
    /// the API server calls somebody else.
    #[must_use]
    pub fn carries(&self, bundle: &str) -> bool {
        !self.entries.is_empty()
            && self
                .entries
                .iter()
                .all(|entry| entry.ca_bundle == bundle.as_bytes())
    }
}

/// The API server's knowledge of the webhook.
pub trait Registration: Send + Sync {
    /// What is registered; None if nothing is.
    fn read(&self) -> impl Future<Output = Result<Option<Seen>, RegistrationError>> + Send;
    /// Sets the bundle of all our entries, if the version is still the one seen.
    fn write(
        &self,
        seen: &Seen,
        bundle: &str,
    ) -> impl Future<Output = Result<Swap, RegistrationError>> + Send;
}

/// Why the registration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// Reading.
    #[error("cannot read MutatingWebhookConfiguration {name}")]
    Read {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
    /// Writing.
    #[error("cannot write the caBundle of MutatingWebhookConfiguration {name}")]
    Write {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
}

/// A `MutatingWebhookConfiguration`. Needs get and patch on it.
#[derive(Clone)]
pub struct WebhookRegistration {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
    service: String,
    namespace: String,
}

impl WebhookRegistration {
    /// The configuration of this name; of its entries only those that call this service.
    #[must_use]
    pub fn new(client: Client, name: &str, service: &str, namespace: &str) -> Self {
        Self {
            api: Api::all(client),
            name: name.to_owned(),
            service: service.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    fn is_ours(&self, webhook: &MutatingWebhook) -> bool {
        let service = webhook.client_config.service.as_ref();
        service.is_some_and(|s| s.name == self.service && s.namespace == self.namespace)
    }
}

impl Registration for WebhookRegistration {
    async fn read(&self) -> Result<Option<Seen>, RegistrationError> {
        let found = within(CALL_LIMIT, "GET", self.api.get_opt(&self.name)).await;
        let found = found.map_err(|source| RegistrationError::Read {
            name: self.name.clone(),
            source,
        })?;
        Ok(found.map(|configuration| Seen {
            version: configuration.metadata.resource_version.unwrap_or_default(),
            entries: configuration
                .webhooks
                .unwrap_or_default()
                .into_iter()
                .filter(|webhook| self.is_ours(webhook))
                .map(|webhook| Entry {
                    name: webhook.name,
                    ca_bundle: webhook.client_config.ca_bundle.unwrap_or_default().0,
                })
                .collect(),
        }))
    }

    async fn write(&self, seen: &Seen, bundle: &str) -> Result<Swap, RegistrationError> {
        let patch = Patch::Strategic(bundle_patch(seen, bundle));
        let params = PatchParams {
            field_manager: Some(WEBHOOK_MANAGER.to_owned()),
            ..Default::default()
        };
        match within(
            CALL_LIMIT,
            "patch",
            self.api.patch(&self.name, &params, &patch),
        )
        .await
        {
            Ok(_written) => Ok(Swap::Done),
            Err(error) if is_conflict(&error) || is_gone(&error) => Ok(Swap::Conflict),
            Err(source) => Err(RegistrationError::Write {
                name: self.name.clone(),
                source,
            }),
        }
    }
}

/// The list `webhooks` merges by name, so entries and fields that are not mentioned stay as they are.
fn bundle_patch(seen: &Seen, bundle: &str) -> Value {
    let bundle = STANDARD.encode(bundle);
    let entries = seen
        .entries
        .iter()
        .map(|entry| json!({ "name": entry.name, "clientConfig": { "caBundle": bundle } }));
    json!({
        "metadata": { "resourceVersion": seen.version },
        "webhooks": entries.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
