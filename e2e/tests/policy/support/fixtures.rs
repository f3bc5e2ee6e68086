//! The pods of the tables.

use anyhow::{Result, ensure};
use e2e::paths;
use serde_json::{Value, json};

use super::caller::{Call, Form, Who};
use super::objects::{At, SYSTEM, annotated, create, mapping, on_node, pod, post};
use super::world::{REGISTRATIONS, Session};
use super::{ANNOTATION, MARK, MARKED, RESULT};

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

impl Session<'_> {
    /// The pods that enforcers' tokens are bound to, and the registration.
    pub(super) fn furnish_system(&self) -> Result<()> {
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

    /// Policies take effect a moment after they are applied: each is tried until it refuses.
    pub(super) fn wait_for_policies(&self) -> Result<()> {
        let forged = annotated(pod("probe"), json!({ ANNOTATION: RESULT }));
        let mut deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "probe" },
            "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } }, "spec": pod("probe")["spec"] } } });
        deployment["spec"]["template"]["metadata"]["annotations"][ANNOTATION] = json!("broken");
        let typo = annotated(pod("probe"), json!({ "tkestack.io/port": "" }));
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
            ("hints", Who::User, create("default", typo)),
            ("webhook", Who::Webhook, registration),
        ] {
            call.path.push_str("?dryRun=All");
            let reply = format!("ValidatingAdmissionPolicy 'portmapping-{policy}'");
            self.eventually(&format!("the policy portmapping-{policy}"), || {
                let answer = self.call(who, &call)?;
                let reported = answer
                    .warnings
                    .iter()
                    .any(|text| text.contains("portmapping"));
                let refused = answer.message().contains(&reply);
                ensure!(reported || refused, "it is not in force yet: {answer:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Namespaces and pods of the tables; no row changes them.
    pub(super) fn furnish(&self) -> Result<()> {
        for (name, labels) in NAMESPACES {
            self.namespace(name, labels)?;
        }
        let asks = json!({ ANNOTATION: "" });
        let crowd = (0..2000).map(|n| (format!("{n:x}"), json!("")));
        let crowd = Value::Object(crowd.collect());
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
            ("open", "crowded", "node1", crowd),
            ("open", "elsewhere", "node2", asks.clone()),
            ("open", "terminating", "node1", asks.clone()),
            ("baseline", "plain", "node1", json!({})),
            ("permitted", "plain", "node2", json!({})),
            ("turned", "mapped", "node1", asks.clone()),
            (SYSTEM, "mapped", "node1", asks.clone()),
        ];
        for (namespace, name, node, annotations) in pods {
            let pod = on_node(annotated(pod(name), annotations), node);
            self.done(Who::User, &create(namespace, pod))?;
        }
        let mut unscheduled = annotated(pod("unscheduled"), asks);
        unscheduled["spec"]["schedulerName"] = json!("no-such-scheduler");
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
        let mut ask = create("turned", annotated(pod("probe"), json!({ ANNOTATION: "" })));
        ask.path.push_str("?dryRun=All");
        self.eventually("the namespace's new level", || {
            ensure!(!self.call(Who::User, &ask)?.is_fine(), "still open");
            Ok(())
        })
    }
}
