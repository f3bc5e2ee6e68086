//! The few questions that the harness asks the API server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::runtime::{Builder, Runtime};

const PATIENCE: Duration = Duration::from_secs(5);

/// A client that blocks.
pub(crate) struct Server {
    runtime: Runtime,
    client: Client,
}

impl Server {
    pub(crate) fn connect(kubeconfig: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime")?;
        let config = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("read {}", kubeconfig.display()))?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(config, &options).await?;
            anyhow::Ok(Client::try_from(config)?)
        });
        let client =
            client.with_context(|| format!("make a client from {}", kubeconfig.display()))?;
        Ok(Self { runtime, client })
    }

    /// Whether /readyz says ok.
    pub(crate) fn ready(&self) -> Result<()> {
        self.ask(async {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            self.client.request_text(request).await?;
            Ok(())
        })
    }

    /// What is still missing until the cluster takes pods on all these nodes; `None` when nothing is.
    /// A node that was last heard of at `stale` has not come back yet.
    pub(crate) fn missing(&self, nodes: &[String], stale: Option<i64>) -> Result<Option<String>> {
        let found = self.ask(async {
            Ok(Api::<Node>::all(self.client.clone())
                .list(&ListParams::default())
                .await?
                .items)
        })?;
        for name in nodes {
            let node = found
                .iter()
                .find(|node| node.metadata.name.as_ref() == Some(name));
            let Some(node) = node else {
                return Ok(Some(format!("{name} has not registered")));
            };
            let heard = last_heard(node);
            if heard.is_none() || heard == stale {
                return Ok(Some(format!("{name} is not Ready")));
            }
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            if let Some(taint) = taints.and_then(|taints| taints.first()) {
                return Ok(Some(format!("{name} still has the taint {}", taint.key)));
            }
        }
        let account = self.ask(async {
            let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), "default");
            Ok(accounts.get_opt("default").await?)
        })?;
        Ok(account
            .is_none()
            .then(|| "no service account default/default".to_owned()))
    }

    /// When a node was last heard of while it was Ready.
    pub(crate) fn last_heard(&self, node: &str) -> Result<Option<i64>> {
        self.ask(async {
            let node = Api::<Node>::all(self.client.clone()).get_opt(node).await?;
            Ok(node.as_ref().and_then(last_heard))
        })
    }

    fn ask<T>(&self, question: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, question)
                .await
                .map_err(|_| anyhow!("no answer from the API server within {PATIENCE:?}"))?
        })
    }
}

/// When a Ready node was last heard of, in seconds since 1970.
fn last_heard(node: &Node) -> Option<i64> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .find(|one| one.type_ == "Ready" && one.status == "True")?;
    Some(ready.last_heartbeat_time.as_ref()?.0.as_second())
}
