//! The caBundle of the webhook's registration: the CAs that the API server trusts.
//!
//! It is written by a strategic merge patch that names only the caBundle of our own webhooks. The
//! manifests do not mention the caBundle, so applying them again does not change it.

use std::future::Future;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use kube::api::Patch;
use kube::{Api, Client};
use portmapping_runtime::{CallError, within};
use serde_json::{Value, json};

use crate::secret::{CALL_LIMIT, Swap, patch_params, swapped};

/// The part of the registration that is ours.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The resourceVersion; changes with every write.
    pub version: String,
    /// The webhooks that call our service.
    pub webhooks: Vec<RegisteredWebhook>,
}

/// One webhook that calls our service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredWebhook {
    /// Its name, unique in the registration.
    pub name: String,
    /// The CAs that the API server trusts for it, in PEM; empty for the roots of its system.
    pub ca_bundle: Vec<u8>,
}

impl Registered {
    /// Returns whether the API server trusts exactly this bundle. False without a webhook of ours,
    /// because the API server then calls another service.
    #[must_use]
    pub fn carries(&self, bundle: &str) -> bool {
        let carries = |webhook: &RegisteredWebhook| webhook.ca_bundle == bundle.as_bytes();
        !self.webhooks.is_empty() && self.webhooks.iter().all(carries)
    }
}

/// Where the API server learns of the webhook.
pub trait Registration: Send + Sync {
    /// Reads the registration; None if there is none.
    fn read(&self) -> impl Future<Output = Result<Option<Registered>, RegistrationError>> + Send;
    /// Sets the bundle of all our webhooks, if the version is still the one that was read.
    fn write(
        &self,
        registered: &Registered,
        bundle: &str,
    ) -> impl Future<Output = Result<Swap, RegistrationError>> + Send;
}

/// Why a call for the registration failed.
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

/// A `MutatingWebhookConfiguration`. Needs the verbs get and patch on it.
#[derive(Clone)]
pub struct WebhookRegistration {
    api: Api<MutatingWebhookConfiguration>,
    name: String,
    service: String,
    namespace: String,
}

impl WebhookRegistration {
    /// Returns the configuration of this name, and of its webhooks those that call this service.
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
    async fn read(&self) -> Result<Option<Registered>, RegistrationError> {
        let found = within(CALL_LIMIT, "GET", self.api.get_opt(&self.name)).await;
        let found = found.map_err(|source| RegistrationError::Read {
            name: self.name.clone(),
            source,
        })?;
        Ok(found.map(|configuration| Registered {
            version: configuration.metadata.resource_version.unwrap_or_default(),
            webhooks: configuration
                .webhooks
                .unwrap_or_default()
                .into_iter()
                .filter(|webhook| self.is_ours(webhook))
                .map(|webhook| RegisteredWebhook {
                    name: webhook.name,
                    ca_bundle: webhook.client_config.ca_bundle.unwrap_or_default().0,
                })
                .collect(),
        }))
    }

    async fn write(
        &self,
        registered: &Registered,
        bundle: &str,
    ) -> Result<Swap, RegistrationError> {
        let patch = Patch::Strategic(bundle_patch(registered, bundle));
        let params = patch_params();
        let call = self.api.patch(&self.name, &params, &patch);
        swapped(within(CALL_LIMIT, "patch", call).await).map_err(|source| {
            RegistrationError::Write {
                name: self.name.clone(),
                source,
            }
        })
    }
}

/// The list `webhooks` merges by name, so webhooks and fields that are not named do not change.
fn bundle_patch(registered: &Registered, bundle: &str) -> Value {
    let bundle = STANDARD.encode(bundle);
    let webhooks = registered
        .webhooks
        .iter()
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } }));
    json!({
        "metadata": { "resourceVersion": registered.version },
        "webhooks": webhooks.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
