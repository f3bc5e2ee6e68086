//! Writes to the API server as another user than the admin.

use std::time::Duration;

use anyhow::{Context, Result};
use e2e::Cluster;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

/// Who writes.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// The admin of the kubeconfig.
    Admin,
    /// A user whom the admin impersonates.
    User(&'static str),
    /// The owner of a token.
    Token(String),
}

/// A strategic merge patch on a pod, through a subresource if there is one; Err(text) is the API
/// server's refusal.
pub(crate) fn patch_pod(
    cluster: &Cluster,
    caller: &Caller,
    (namespace, pod, subresource): (&str, &str, &str),
    body: &Value,
) -> Result<Result<(), String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let api: Api<Pod> = Api::namespaced(client(cluster, caller).await?, namespace);
        let (params, body) = (PatchParams::default(), Patch::Strategic(body));
        let outcome = match subresource {
            "" => api.patch(pod, &params, &body).await,
            "status" => api.patch_status(pod, &params, &body).await,
            other => api.patch_subresource(other, pod, &params, &body).await,
        };
        match outcome {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
            Err(error) => Err(error).context("patch a pod"),
        }
    })
}

/// Merge patches of the admin on a pod, one after the other on one connection, each `pause` after the
/// start of the one before.
pub(crate) fn patch_in_turn(
    cluster: &Cluster,
    (namespace, pod): (&str, &str),
    bodies: &[Value],
    pause: Duration,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let api: Api<Pod> = Api::namespaced(client(cluster, &Caller::Admin).await?, namespace);
        // the connection is made before the first patch, so that the pauses are true
        api.get(pod).await.context("get a pod")?;
        let mut turn = tokio::time::interval(pause);
        for body in bodies {
            turn.tick().await;
            let (params, body) = (PatchParams::default(), Patch::Merge(body));
            api.patch(pod, &params, &body)
                .await
                .context("patch a pod")?;
        }
        Ok(())
    })
}

/// The API server's refusal to delete a pod, if it refuses.
pub(crate) fn delete_pod(
    cluster: &Cluster,
    caller: &Caller,
    (namespace, pod): (&str, &str),
) -> Result<Result<(), String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let api: Api<Pod> = Api::namespaced(client(cluster, caller).await?, namespace);
        match api.delete(pod, &kube::api::DeleteParams::default()).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) => Ok(Err(status.message.clone())),
            Err(error) => Err(error).context("delete a pod"),
        }
    })
}

async fn client(cluster: &Cluster, caller: &Caller) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    let named = kubeconfig
        .auth_infos
        .first_mut()
        .context("a kubeconfig without users")?;
    let user = named.auth_info.get_or_insert_default();
    match caller {
        Caller::Admin => {}
        Caller::User(name) => user.impersonate = Some((*name).to_owned()),
        Caller::Token(token) => user.token = Some(token.clone().into()),
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
