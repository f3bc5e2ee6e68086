//! Two clusters with the policies and without the product, and the pods that the tables speak of.

use std::ops::Deref;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::wait::{Probe, until};
use e2e::{Cluster, Config, Minor, paths};
use serde_json::{Value, json};

use super::caller::{Answer, Call, Callers, Form, Who};
use super::objects::{At, SYSTEM, create, mapping, noted, on_node, pod, post};
use super::{ANNOTATION, MARK, MARKED, RESULT};

/// How long anything that should happen may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(100);

/// Where the registration is.
pub(crate) const REGISTRATIONS: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// A namespace, and its labels.
const NAMESPACES: [(&str, &[(&str, &str)]); 7] = [
    ("open", &[]),
    ("privileged", &[(ENFORCE, "privileged")]),
    ("baseline", &[(ENFORCE, "baseline")]),
    ("restricted", &[(ENFORCE, "restricted")]),
    (
        "permitted",
        &[(ENFORCE, "baseline"), (ANNOTATION, "allowed")],
    ),
    ("mislabelled", &[(ENFORCE, "baseline"), (ANNOTATION, "yes")]),
    ("turned", &[]), // becomes baseline once a pod of it is mapped
];

static OLDEST: LazyLock<World> = LazyLock::new(|| World::start(Minor::V1_33));
static NEWEST: LazyLock<World> = LazyLock::new(|| World::start(Minor::V1_36));

/// Runs a test on both versions.
pub(crate) fn on_both(test: impl Fn(&Session<'_>) -> Result<()>) -> Result<()> {
    for world in [&*NEWEST, &*OLDEST] {
        let session = Session::open(world)?;
        test(&session).with_context(|| format!("on Kubernetes {}", world.minor))?;
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
        for file in ["policy-templates", "policy-webhook"] {
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

    /// The tokens that webhook and enforcers would have: those of an enforcer are bound to its pod.
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

    /// Looks again and again until `probe` finds what it wants; an error counts as not yet.
    pub(crate) fn eventually<T>(
        &self,
        what: &str,
        mut probe: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let what = format!("{what} on Kubernetes {}", self.minor());
        until(&what, LIMIT, LOOK, || {
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

    /// The pods that enforcers' tokens are bound to, and the registration.
    fn furnish_system(&self) -> Result<()> {
        for node in ["node1", "node2"] {
            let mut enforcer = on_node(pod(&format!("enforcer-{node}")), node);
            enforcer["spec"]["serviceAccountName"] = json!("enforcer");
            self.eventually("the enforcer's pod", || {
                self.done(Who::Admin, &create(SYSTEM, enforcer.clone()))
            })?;
        }
        let file = paths::manifests().join("base/registration.yaml");
        let file = format!("--filename={}", file.display());
        let create = ["create", "--dry-run=client", "--output=json", &file];
        let text = self.cluster().kubectl_run(create)?;
        let mut registration: Value = serde_json::from_str(&text)?;
        // nothing here answers it
        registration["webhooks"][0]["rules"] = json!([{ "apiGroups": ["example.com"], "apiVersions": ["v1"],
            "operations": ["CREATE"], "resources": ["nothings"] }]);
        registration["webhooks"][0]["matchConditions"] = Value::Null;
        self.done(Who::Admin, &post(REGISTRATIONS, registration))
            .map(drop)
    }

    /// Policies bite a moment after they were applied: each is tried until it does.
    fn wait_for_policies(&self) -> Result<()> {
        let forged = noted(pod("probe"), json!({ ANNOTATION: RESULT }));
        let mut deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "probe" },
            "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } }, "spec": pod("probe")["spec"] } } });
        deployment["spec"]["template"]["metadata"]["annotations"][ANNOTATION] = json!("broken");
        let own = At(SYSTEM, "enforcer-node1", "status");
        let registration = Call {
            method: "PATCH",
            path: format!("{REGISTRATIONS}/portmapping"),
            form: Form::Merge,
            body: json!({ "metadata": { "labels": { "a": "b" } } }),
        };
        for (policy, who, mut call) in [
            ("users", Who::User, create("default", forged)),
            ("enforcer", Who::UnboundEnforcer, own.patch(mapping())),
            (
                "templates",
                Who::User,
                post("/apis/apps/v1/namespaces/default/deployments", deployment),
            ),
            ("webhook", Who::Webhook, registration),
        ] {
            call.path.push_str("?dryRun=All");
            let said = format!("ValidatingAdmissionPolicy 'portmapping-{policy}'");
            self.eventually(&format!("the policy portmapping-{policy}"), || {
                let answer = self.call(who, &call)?;
                let told = answer
                    .warnings
                    .iter()
                    .any(|text| text.contains("portmapping"));
                let refused = answer.message().contains(&said);
                ensure!(told || refused, "it does not bite yet: {answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Namespaces and pods that tables speak of; no row changes them.
    fn furnish(&self) -> Result<()> {
        for (name, labels) in NAMESPACES {
            self.namespace(name, labels)?;
        }
        let asks = json!({ ANNOTATION: "" });
        let pods = [
            ("open", "plain", "node1", json!({})),
            (
                "open",
                "asked",
                "node1",
                json!({ ANNOTATION: "", "x/y": "1" }),
            ),
            (
                "open",
                "marked",
                "node1",
                json!({ ANNOTATION: "", MARK: MARKED }),
            ),
            (
                "open",
                "mapped",
                "node1",
                json!({ ANNOTATION: "", "x/y": "1" }),
            ),
            ("open", "elsewhere", "node2", asks.clone()),
            ("open", "terminating", "node1", asks.clone()),
            ("baseline", "plain", "node1", json!({})),
            ("permitted", "plain", "node2", json!({})),
            ("turned", "mapped", "node1", asks.clone()),
            (SYSTEM, "mapped", "node1", asks.clone()),
        ];
        for (namespace, name, node, notes) in pods {
            let pod = on_node(noted(pod(name), notes), node);
            self.done(Who::User, &create(namespace, pod))?;
        }
        let mut unscheduled = noted(pod("unscheduled"), asks);
        unscheduled["spec"]["schedulerName"] = json!("nobody");
        self.done(Who::User, &create("open", unscheduled))?;
        for namespace in ["open", "turned", SYSTEM] {
            let mapped = At(namespace, "mapped", "status");
            // the kubelet's first status must be there: a later one would change what rows compare
            self.running(namespace, "mapped")?;
            self.done(Who::Enforcer, &mapped.patch(mapping()))?;
        }
        let terminating = At("open", "terminating", "");
        let finalizer = json!({ "metadata": { "finalizers": ["example.com/stays"] } });
        self.done(Who::User, &terminating.patch(finalizer))?;
        self.done(Who::User, &terminating.delete())?;
        let baseline = Call {
            method: "PATCH",
            path: "/api/v1/namespaces/turned".into(),
            form: Form::Merge,
            body: json!({ "metadata": { "labels": { ENFORCE: "baseline" } } }),
        };
        self.done(Who::Admin, &baseline)?;
        let mut ask = create("turned", noted(pod("probe"), json!({ ANNOTATION: "" })));
        ask.path.push_str("?dryRun=All");
        self.eventually("the namespace's new level", || {
            ensure!(!self.call(Who::User, &ask)?.is_fine(), "still open");
            Ok(())
        })
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
