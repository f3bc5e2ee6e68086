//! Raw requests to the API server as any user, so that tests see codes and warnings.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Cluster;
use http::Request;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use super::objects::SYSTEM;

const PATIENCE: Duration = Duration::from_secs(20);

/// Who does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A user with every right that RBAC can give.
    User,
    /// The cluster's administrator, of the group system:masters.
    Admin,
    /// The kubelet of node1.
    Kubelet,
    /// The scheduler.
    Scheduler,
    /// The token of node1's enforcer, as its pod has it.
    Enforcer,
    /// The token of node2's enforcer.
    OtherEnforcer,
    /// A token of the enforcer's account that is bound to no pod, so it names no node.
    UnboundEnforcer,
    /// The enforcer of node1, if RBAC gave it every right.
    MightyEnforcer,
    /// The webhook's account.
    Webhook,
    /// The webhook's account, if RBAC gave it every right.
    MightyWebhook,
}

/// An answer of the API server.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Answer {
    pub(crate) fn is_fine(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Why it refused.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

/// How a body is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Json,
    Strategic,
    Merge,
    JsonPatch,
    Apply,
}

impl Form {
    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::JsonPatch => "application/json-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub method: &'static str,
    pub path: String,
    pub form: Form,
    pub body: Value,
}

/// Clients of one API server for all users. For one thread.
pub(crate) struct Callers {
    runtime: Runtime,
    admin: Client,
    tokens: BTreeMap<Who, Client>,
}

impl Callers {
    /// Access for the admin and whom the admin may impersonate; tokens come later.
    pub(crate) fn connect(cluster: &Cluster) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let admin = runtime.block_on(client(cluster, None))?;
        Ok(Self {
            runtime,
            admin,
            tokens: BTreeMap::new(),
        })
    }

    /// Asks for the token of a service account of the system, bound to a pod or to none.
    pub(crate) fn issue(
        &mut self,
        cluster: &Cluster,
        who: Who,
        account: &str,
        pod: Option<&str>,
    ) -> Result<()> {
        let mut spec = json!({ "expirationSeconds": 3600 });
        if let Some(pod) = pod {
            spec["boundObjectRef"] = json!({ "kind": "Pod", "apiVersion": "v1", "name": pod });
        }
        let answer = self.call(
            Who::Admin,
            &Call {
                method: "POST",
                path: format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{account}/token"),
                form: Form::Json,
                body: json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec }),
            },
        )?;
        ensure!(answer.is_fine(), "no token for {who:?}: {answer:?}");
        let token = answer.body["status"]["token"].as_str().context("empty")?;
        let client = self
            .runtime
            .block_on(client(cluster, Some(token.to_owned())))?;
        self.tokens.insert(who, client);
        Ok(())
    }

    /// Sends a request.
    pub(crate) fn call(&self, who: Who, call: &Call) -> Result<Answer> {
        let client = self.tokens.get(&who).unwrap_or(&self.admin);
        let mut request = Request::builder()
            .method(call.method)
            .uri(&call.path)
            .header("content-type", call.form.content_type())
            .header("accept", "application/json");
        for (name, value) in impersonation(who) {
            request = request.header(*name, *value);
        }
        let body = match &call.body {
            Value::Null => Vec::new(),
            body => serde_json::to_vec(body)?,
        };
        let request = request.body(Body::from(body))?;
        let what = || format!("{} {} as {who:?}", call.method, call.path);
        self.runtime.block_on(async {
            let exchange = async {
                let answer = client.send(request).await?;
                let code = answer.status().as_u16();
                let warnings = answer.headers().get_all("warning").iter();
                let warnings = warnings.map(|text| String::from_utf8_lossy(text.as_bytes()).into());
                let warnings = warnings.collect();
                let bytes = answer.into_body().collect_bytes().await?;
                let body = serde_json::from_slice(&bytes).unwrap_or_else(
                    |_| json!({ "message": String::from_utf8_lossy(&bytes).into_owned() }),
                );
                Ok(Answer {
                    code,
                    body,
                    warnings,
                })
            };
            tokio::time::timeout(PATIENCE, exchange)
                .await
                .with_context(|| format!("no answer to {}", what()))?
                .map_err(|error: kube::Error| error)
                .with_context(what)
        })
    }
}

/// Headers with which the admin impersonates another user.
fn impersonation(who: Who) -> &'static [(&'static str, &'static str)] {
    match who {
        Who::User => &[("impersonate-user", "alice")],
        Who::Kubelet => &[
            ("impersonate-user", "system:node:node1"),
            ("impersonate-group", "system:nodes"),
        ],
        Who::Scheduler => &[("impersonate-user", "system:kube-scheduler")],
        // the group passes RBAC, so that only the policy can refuse
        Who::MightyEnforcer => &[
            (
                "impersonate-user",
                "system:serviceaccount:portmapping-system:enforcer",
            ),
            ("impersonate-group", "system:masters"),
            (
                "impersonate-extra-authentication.kubernetes.io%2fnode-name",
                "node1",
            ),
        ],
        Who::MightyWebhook => &[
            (
                "impersonate-user",
                "system:serviceaccount:portmapping-system:webhook",
            ),
            ("impersonate-group", "system:masters"),
        ],
        Who::Admin | Who::Enforcer | Who::OtherEnforcer | Who::UnboundEnforcer | Who::Webhook => {
            &[]
        }
    }
}

async fn client(cluster: &Cluster, token: Option<String>) -> Result<Client> {
    let mut kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    if let Some(token) = token {
        let named = kubeconfig.auth_infos.first_mut();
        let named = named.context("a kubeconfig without users")?;
        named.auth_info.get_or_insert_default().token = Some(token.into());
    }
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
