//! A client of the API server: JSON values over HTTPS, one blocking call after the other. The client
//! library of the product would be most of what a first `e2e demo` compiles.

use std::fmt::{self, Display};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Method, Request};
use serde_json::Value;
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// One call, from its first byte to the last byte of the answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the next change of a watch. A connection that died unnoticed costs as much.
const QUIET: Duration = Duration::from_secs(30);
/// Before the next try, after a list or a watch that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// A client with the credentials of a kubeconfig that this harness wrote.
#[derive(Clone, Debug)]
pub struct Api {
    agent: Agent,
    server: String,
    authorization: String,
}

/// What the API server answered instead of doing what it was asked.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub code: u16,
    /// The message of the Status object.
    pub message: String,
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the API server answered {}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// What [`Api::follow`] reports.
#[derive(Debug)]
pub enum WatchEvent {
    /// All objects, at the start and after every interruption.
    All(Vec<Value>),
    /// An object is new or has changed.
    Applied(Value),
    /// An object is gone; its last state.
    Deleted(Value),
}

impl Api {
    /// Reads the kubeconfig; connects with the first call.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        Self::read(kubeconfig)
            .with_context(|| format!("make a client from {}", kubeconfig.display()))
    }

    fn read(kubeconfig: &Path) -> Result<Self> {
        let text = fs::read(kubeconfig).context("read it")?;
        let config: Value =
            serde_json::from_slice(&text).context("it is no JSON: another program wrote it")?;
        let text = |pointer: &str| {
            let value = config.pointer(pointer).and_then(Value::as_str);
            value.with_context(|| format!("it has no {pointer}"))
        };
        let authority = text("/clusters/0/cluster/certificate-authority")?;
        let pem = fs::read(authority).with_context(|| format!("read {authority}"))?;
        let mut roots = Vec::new();
        for item in ureq::tls::parse_pem(&pem) {
            if let PemItem::Certificate(root) =
                item.with_context(|| format!("parse {authority}"))?
            {
                roots.push(root);
            }
        }
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            .timeout_connect(Some(LIMIT))
            .build();
        Ok(Self {
            agent: Agent::new_with_config(config),
            server: text("/clusters/0/cluster/server")?.to_owned(),
            authorization: format!("Bearer {}", text("/users/0/user/token")?),
        })
    }

    /// The same API server with the token of another account.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            authorization: format!("Bearer {token}"),
            ..self.clone()
        }
    }

    /// An object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None)
    }

    /// Creates an object below the path of its kind.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(("application/json", object)))
    }

    /// Applies a strategic merge patch to an object.
    pub fn patch(&self, path: &str, changes: &Value) -> Result<Value> {
        let kind = "application/strategic-merge-patch+json";
        self.call(Method::PATCH, path, Some((kind, changes)))
    }

    /// Deletes an object.
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None)
    }

    /// Whether /readyz answers with success.
    pub fn ready(&self) -> Result<()> {
        self.ask(Method::GET, "/readyz", None).map(drop)
    }

    fn call(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Value> {
        let text = self.ask(method, path, body)?;
        serde_json::from_str(&text).with_context(|| format!("the answer to {path} is no JSON"))
    }

    fn ask(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<String> {
        let mut answer = self.send(method, path, body, Some(LIMIT))?;
        let text = answer.body_mut().read_to_string();
        let text = text.with_context(|| format!("read the answer to {path}"))?;
        if answer.status().is_success() {
            return Ok(text);
        }
        let status: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = status["message"].as_str().unwrap_or(&text).to_owned();
        let code = answer.status().as_u16();
        Err(Refused { code, message }.into())
    }

    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
        limit: Option<Duration>,
    ) -> Result<http::Response<Body>> {
        let what = format!("{method} {path}");
        let (kind, bytes) = match body {
            Some((kind, body)) => (kind, serde_json::to_vec(body)?),
            None => ("application/json", Vec::new()),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header(AUTHORIZATION, &self.authorization)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, kind)
            .body(bytes)?;
        let request = self
            .agent
            .configure_request(request)
            .allow_non_standard_methods(true)
            .timeout_global(limit)
            .timeout_per_read(Some(QUIET))
            .build();
        self.agent.run(request).context(what)
    }

    /// Lists the objects below a path, then reports every change, until `stop` says so. Lists again
    /// after an interruption. `stop` is asked after each change and after `QUIET` without one.
    pub fn follow(&self, path: &str, stop: impl Fn() -> bool, mut report: impl FnMut(WatchEvent)) {
        while !stop() {
            // The API server may be down on purpose; the next list makes up for what was missed.
            if self.list_and_watch(path, &stop, &mut report).is_err() {
                thread::sleep(PAUSE);
            }
        }
    }

    fn list_and_watch(
        &self,
        path: &str,
        stop: &impl Fn() -> bool,
        report: &mut impl FnMut(WatchEvent),
    ) -> Result<()> {
        let mut list = self.get(path)?;
        let version = list["metadata"]["resourceVersion"].as_str();
        let version = version.context("a list without a version")?;
        let watch = format!("{path}?watch=true&resourceVersion={version}");
        let items = list["items"].take();
        report(WatchEvent::All(serde_json::from_value(items)?));
        let answer = self.send(Method::GET, &watch, None, None)?;
        if !answer.status().is_success() {
            bail!("the API server answered {} to {watch}", answer.status());
        }
        for line in BufReader::new(answer.into_body().into_reader()).lines() {
            let mut event: Value = serde_json::from_str(&line?)?;
            let object = event["object"].take();
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => report(WatchEvent::Applied(object)),
                Some("DELETED") => report(WatchEvent::Deleted(object)),
                kind => bail!("the watch of {path} sent {kind:?}"),
            }
            if stop() {
                break;
            }
        }
        Ok(())
    }
}
