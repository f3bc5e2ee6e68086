//! One Secret and one registration in memory, with compare-and-swap as the API server has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use portmapping_runtime::CallError;
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::bundle::{Registered, RegisteredWebhook, Registration, RegistrationError};
use crate::material::Material;
use crate::secret::{Store, StoreError, Stored, Swap};

/// (version, content); None where there is no such object.
type Object<T> = Option<(u64, T)>;

/// What the cluster holds.
#[derive(Clone, Default)]
pub(super) struct Cluster {
    pub(super) secret: Arc<Mutex<Object<Material>>>,
    pub(super) registered: Arc<Mutex<Object<Vec<u8>>>>,
    pub(super) down: Arc<AtomicBool>,
    pub(super) read_only: Arc<AtomicBool>,
    /// A change that the watch of one replica sees.
    pub(super) change: Arc<Notify>,
}

impl Cluster {
    pub(super) fn registered() -> Self {
        let cluster = Self::default();
        *cluster.registered.lock() = Some((1, Vec::new()));
        cluster
    }

    /// Every call lets the other replicas run in between.
    async fn call(&self) -> Result<(), CallError<kube::Error>> {
        yield_now().await;
        if self.down.load(Ordering::Relaxed) {
            return Err(CallError::TimedOut {
                what: "call",
                limit: Duration::ZERO,
            });
        }
        Ok(())
    }

    async fn write_call(&self) -> Result<(), CallError<kube::Error>> {
        self.call().await?;
        if self.read_only.load(Ordering::Relaxed) {
            return Err(CallError::TimedOut {
                what: "write",
                limit: Duration::ZERO,
            });
        }
        Ok(())
    }

    pub(super) fn material(&self) -> Material {
        self.secret
            .lock()
            .clone()
            .map(|(_, material)| material)
            .unwrap_or_default()
    }

    pub(super) fn bundle(&self) -> String {
        let bytes = self
            .registered
            .lock()
            .clone()
            .map(|(_, bundle)| bundle)
            .unwrap_or_default();
        String::from_utf8(bytes).unwrap()
    }
}

impl Store for Cluster {
    async fn read(&self) -> Result<Option<Stored>, StoreError> {
        let name = "test".to_owned();
        self.call()
            .await
            .map_err(|source| StoreError::Read { name, source })?;
        let held = self.secret.lock().clone();
        Ok(held.map(|(version, material)| Stored {
            version: version.to_string(),
            material,
        }))
    }

    async fn create(&self) -> Result<Stored, StoreError> {
        yield_now().await;
        self.secret
            .lock()
            .get_or_insert_with(|| (1, Material::default()));
        Ok(Store::read(self).await?.unwrap())
    }

    async fn replace(&self, seen: &str, material: &Material) -> Result<Swap, StoreError> {
        let name = "test".to_owned();
        self.call()
            .await
            .map_err(|source| StoreError::Write { name, source })?;
        let mut held = self.secret.lock();
        match held.as_mut() {
            Some((version, there)) if version.to_string() == seen => {
                *version += 1;
                *there = material.clone();
                Ok(Swap::Done)
            }
            _ => Ok(Swap::Conflict),
        }
    }
}

impl Registration for Cluster {
    async fn read(&self) -> Result<Option<Registered>, RegistrationError> {
        let name = "test".to_owned();
        self.call()
            .await
            .map_err(|source| RegistrationError::Read { name, source })?;
        let held = self.registered.lock().clone();
        Ok(held.map(|(version, ca_bundle)| Registered {
            version: version.to_string(),
            webhooks: vec![RegisteredWebhook {
                name: "ours".to_owned(),
                ca_bundle,
            }],
        }))
    }

    async fn write(&self, seen: &Registered, bundle: &str) -> Result<Swap, RegistrationError> {
        let name = "test".to_owned();
        self.write_call()
            .await
            .map_err(|source| RegistrationError::Write { name, source })?;
        let mut held = self.registered.lock();
        match held.as_mut() {
            Some((version, there)) if version.to_string() == seen.version => {
                *version += 1;
                *there = bundle.as_bytes().to_vec();
                Ok(Swap::Done)
            }
            _ => Ok(Swap::Conflict),
        }
    }

    async fn watch(&self, changed: &Notify) {
        loop {
            self.change.notified().await;
            changed.notify_one();
        }
    }
}
