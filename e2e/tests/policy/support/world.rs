//! Two clusters with the policies and without the product.

use std::ops::Deref;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::wait::{Probe, until};
use e2e::{Cluster, Config, Minor, paths};
use serde_json::{Value, json};

use super::caller::{Answer, Call, Callers, Form, Who};
use super::objects::post;

/// How long any expected change may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// Where the registration is.
pub(crate) const REGISTRATIONS: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

static OLDEST: LazyLock<World> = LazyLock::new(|| World::start(Minor::V1_33));
static NEWEST: LazyLock<World> = LazyLock::new(|| World::start(Minor::V1_36));

/// Runs a test on both versions.
pub(crate) fn on_both(test: impl Fn(&Session<'_>) -> Result<()>) -> Result<()> {
    for world in [&NEWEST, &OLDEST] {
        let world: &World = world;
        let judged = world.cluster.judged(|| test(&Session::open(world)?));
        judged.with_context(|| format!("on Kubernetes {}", world.minor))?;
    }
    Ok(())
}

/// A cluster.
pub(crate) struct World {
    minor: Minor,
    cluster: Cluster,
}

/// A test's access to a cluster.
pub(crate) struct Session<'a> {
    world: &'a World,
    callers: Callers,
}

impl Deref for Session<'_> {
    type Target = Callers;

    fn deref(&self) -> &Callers {
        &self.callers
    }
}

impl World {
    #[allow(clippy::panic, reason = "without a cluster there is nothing to test")]
    fn start(minor: Minor) -> Self {
        match Self::try_start(minor) {
            Ok(world) => world,
            Err(error) => panic!("no cluster of Kubernetes {minor} to test on: {error:#}"),
        }
    }

    fn try_start(minor: Minor) -> Result<Self> {
        let name = minor.to_string().replace('.', "-");
        let cluster = Cluster::start(&Config {
            name: format!("policy-{name}-{}", std::process::id()),
            kubernetes: minor,
            product: false,
            program: Some(env!("CARGO_BIN_EXE_e2e").into()),
            ..Config::default()
        })?;
        let world = Self { minor, cluster };
        world.install()?;
        let mut session = Session {
            world: &world,
            callers: Callers::connect(&world.cluster)?,
        };
        session.furnish_system()?;
        session.issue_tokens()?;
        session.wait_for_policies()?;
        session.furnish()?;
        Ok(world)
    }

    /// Namespace, roles and policies; no workload, and a registration that no request matches.
    fn install(&self) -> Result<()> {
        let base = paths::manifests().join("base");
        let mut apply = vec!["apply".into(), "--server-side".into()];
        for file in ["namespace", "rbac", "policy-users", "policy-enforcer"] {
            apply.push(format!("--filename={}/{file}.yaml", base.display()));
        }
        for file in ["policy-templates", "policy-hints", "policy-webhook"] {
            apply.push(format!("--filename={}/{file}.yaml", base.display()));
        }
        self.cluster.kubectl_run(apply)?;
        self.cluster.kubectl_run([
            "create",
            "clusterrolebinding",
            "alice",
            "--clusterrole=cluster-admin",
            "--user=alice",
        ])?;
        Ok(())
    }
}

impl<'a> Session<'a> {
    fn open(world: &'a World) -> Result<Self> {
        let mut session = Session {
            world,
            callers: Callers::connect(&world.cluster)?,
        };
        session.issue_tokens()?;
        Ok(session)
    }

    pub(crate) fn cluster(&self) -> &'a Cluster {
        &self.world.cluster
    }

    pub(crate) fn minor(&self) -> Minor {
        self.world.minor
    }

    /// Tokens as webhook and enforcers have them: the token of an enforcer is bound to its pod.
    fn issue_tokens(&mut self) -> Result<()> {
        for (who, account, pod) in [
            (Who::Enforcer, "enforcer", Some("enforcer-node1")),
            (Who::OtherEnforcer, "enforcer", Some("enforcer-node2")),
            (Who::UnboundEnforcer, "enforcer", None),
            (Who::Webhook, "webhook", None),
        ] {
            self.callers.issue(&self.world.cluster, who, account, pod)?;
        }
        Ok(())
    }

    /// The cluster's own certificate authority, as a caBundle.
    pub(crate) fn authority(&self) -> Result<String> {
        let path = "jsonpath={.clusters[0].cluster.certificate-authority-data}";
        let view = ["config", "view", "--raw", "--flatten", "--output", path];
        self.cluster().kubectl_run(view)
    }

    /// A node.
    pub(crate) fn node(&self, name: &str) -> Result<Value> {
        let get = Call {
            method: "GET",
            path: format!("/api/v1/nodes/{name}"),
            form: Form::Json,
            body: Value::Null,
        };
        self.done(Who::Admin, &get)
    }

    /// A call that must pass.
    pub(crate) fn done(&self, who: Who, call: &Call) -> Result<Value> {
        let answer = self.call(who, call)?;
        let Answer { code, .. } = answer;
        let (method, path) = (call.method, &call.path);
        ensure!(
            answer.is_fine(),
            "{who:?}: {method} {path}: {code} {}",
            answer.message()
        );
        Ok(answer.body)
    }

    /// Polls until `probe` succeeds; an error counts as not yet.
    pub(crate) fn eventually<T>(
        &self,
        what: &str,
        mut probe: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let what = format!("{what} on Kubernetes {}", self.minor());
        until(&what, LIMIT, POLL, || {
            Ok(match probe() {
                Ok(found) => Probe::Done(found),
                Err(error) => Probe::Missing(format!("{error:#}")),
            })
        })
    }

    /// A namespace; its service account is there when this returns.
    pub(crate) fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: Value = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.done(Who::Admin, &post("/api/v1/namespaces", body))?;
        self.eventually("the namespace's service account", || {
            let path = format!("/api/v1/namespaces/{name}/serviceaccounts/default");
            let get = Call {
                method: "GET",
                path,
                form: Form::Json,
                body: Value::Null,
            };
            self.done(Who::Admin, &get)
        })
        .map(drop)
    }

    /// Waits until a pod runs.
    pub(crate) fn running(&self, namespace: &str, name: &str) -> Result<Value> {
        let path = super::objects::pod_path(namespace, name, "");
        let get = Call {
            method: "GET",
            path,
            form: Form::Json,
            body: Value::Null,
        };
        self.eventually(&format!("{namespace}/{name} to run"), || {
            let pod = self.done(Who::Admin, &get)?;
            ensure!(pod["status"]["phase"] == "Running", "{}", pod["status"]);
            Ok(pod)
        })
    }
}
