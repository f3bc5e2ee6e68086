//! The caBundle of the webhook's registration: the CAs that the API server trusts.
//!
//! It is written by a strategic merge patch that names only the caBundle of our own webhooks. The
//! manifests do not mention the caBundle, so applying them again does not change it.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use kube::api::{Patch, WatchEvent, WatchParams};
use kube::{Api, Client};
use portmapping_runtime::deadline::chain;
use portmapping_runtime::{CallError, within};
use portmapping_shared::Backoff;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::secret::{CALL_LIMIT, Swap, patch_params, swapped};

/// Waits between two watches. One that ended as planned waits for the first: the next one
/// begins with what changed during the wait.
const WATCH_AGAIN: Backoff = Backoff {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(15),
};
/// Waits are up to this share longer or shorter: replicas lose their watches together.
const JITTER: f64 = 0.2;
/// The version from which a watch tells first what there is.
const ANY: &str = "0";

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
    /// Notifies of each change, also of our own, until it is dropped.
    fn watch(&self, changed: &Notify) -> impl Future<Output = ()> + Send;
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
    /// Watching.
    #[error("cannot watch MutatingWebhookConfiguration {name}; it is read in each period instead")]
    Watch {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: CallError<kube::Error>,
    },
}

/// A `MutatingWebhookConfiguration`. Needs the verbs get, patch and watch on it.
#[derive(Clone)]
pub struct WebhookRegistration {
    api: Api<MutatingWebhookConfiguration>,
    watches: Api<MutatingWebhookConfiguration>,
    name: String,
    service: String,
    namespace: String,
}

impl WebhookRegistration {
    /// Returns the configuration of this name, and of its webhooks those that call this service.
    /// `watches` is a client for the watch, which is silent for up to a minute.
    #[must_use]
    pub fn new(
        client: Client,
        watches: Client,
        name: &str,
        service: &str,
        namespace: &str,
    ) -> Self {
        Self {
            api: Api::all(client),
            watches: Api::all(watches),
            name: name.to_owned(),
            service: service.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    fn is_ours(&self, webhook: &MutatingWebhook) -> bool {
        let service = webhook.client_config.service.as_ref();
        service.is_some_and(|s| s.name == self.service && s.namespace == self.namespace)
    }

    /// Runs one watch to its end, and moves `version` to what it told last. A kube watcher would
    /// list first, which needs one more right.
    async fn watch_once(
        &self,
        version: &mut String,
        changed: &Notify,
    ) -> Result<(), CallError<kube::Error>> {
        const WHAT: &str = "watch";
        let failed = |source| CallError::Failed { what: WHAT, source };
        // RBAC takes this field selector for the name of the object
        let only = WatchParams::default().fields(&format!("metadata.name={}", self.name));
        let from = std::mem::replace(version, ANY.to_owned());
        let opening = self.watches.watch_metadata(&only, &from);
        let mut events = pin!(within(CALL_LIMIT, WHAT, opening).await?);
        *version = from;
        while let Some(event) = events.next().await {
            match event.map_err(failed)? {
                WatchEvent::Added(it) | WatchEvent::Modified(it) | WatchEvent::Deleted(it) => {
                    *version = it.metadata.resource_version.unwrap_or_default();
                    changed.notify_one();
                }
                WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => {
                    // the version is too old: the next watch tells what there is
                    ANY.clone_into(version);
                    return Err(failed(kube::Error::Api(status)));
                }
            }
        }
        Ok(())
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

    async fn watch(&self, changed: &Notify) {
        let mut version = ANY.to_owned();
        let mut failures = 0;
        loop {
            failures = match self.watch_once(&mut version, changed).await {
                Ok(()) => 0,
                Err(source) => {
                    let name = self.name.clone();
                    let error = chain(&RegistrationError::Watch { name, source });
                    // an API server that restarts ends a watch: no news
                    if failures == 1 {
                        tracing::warn!(error, "registration: watching it again later");
                    }
                    u32::saturating_add(failures, 1)
                }
            };
            let wait = WATCH_AGAIN.after(failures.max(1), rand::random_range(-JITTER..JITTER));
            tokio::time::sleep(wait).await;
        }
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
