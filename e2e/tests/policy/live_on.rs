//! Do kubelets, the scheduler and users of mapped pods work as before?

use anyhow::{Context, Result, ensure};
use e2e::cluster::STATIC_PODS;
use serde_json::{Value, json};

use crate::support::caller::Who::{Admin, Enforcer, Kubelet, Scheduler, User};
use crate::support::objects::{At, annotated, annotations, condition, create, mapping, pod, post};
use crate::support::rows::Outcome::Allowed;
use crate::support::rows::{Row, row};
use crate::support::world::{Session, on_both};
use crate::support::{ANNOTATION, LABEL, MARK, PER_PORT, RESULT};

fn ephemeral() -> Value {
    json!({ "spec": { "ephemeralContainers": [{ "name": "debug", "image": "localhost/echo:1",
        "imagePullPolicy": "IfNotPresent", "args": ["--pause"] }] } })
}

fn resize() -> Value {
    json!({ "spec": { "containers": [{ "name": "echo", "resources": { "requests": { "cpu": "2m" } } }] } })
}

fn eviction(pod: &str) -> Value {
    json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": pod } })
}

#[rustfmt::skip] // a table is read by its columns
fn rows(session: &Session<'_>) -> Result<Vec<Row>> {
    let (mapped, status) = (At("open", "mapped", ""), At("open", "mapped", "status"));
    let label = json!({ "metadata": { "labels": { "l": "1" } } });
    let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }], "message": "x" } });
    let other = json!({ "status": { "conditions": [{ "type": "x/y", "status": "True" }] } });
    let bind = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "unscheduled" }, "target": { "kind": "Node", "name": "node1" } });
    let mut repeated = bind.clone();
    repeated["metadata"]["annotations"] = json!({ ANNOTATION: "", MARK: r#"[{"containerPort":9040,"protocol":"TCP"}]"# });
    let unschedulable = json!({ "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" }] } });
    let whole = session.done(Admin, &mapped.get())?;
    let mut put = post(mapped.path(), whole);
    put.method = "PUT";
    Ok(vec![
        row(User,      "labels a mapped pod",                          mapped.patch(label.clone()),             Allowed),
        row(User,      "labels it by merge patch",                     mapped.merge(label.clone()),             Allowed),
        row(User,      "labels it by server-side apply",               mapped.apply("y", label.clone()),        Allowed),
        row(User,      "puts it back as it is",                        put,                                     Allowed),
        row(User,      "changes another annotation",                   mapped.note("x/y", "3"),                 Allowed),
        row(User,      "adds an annotation that looks like ours",      mapped.note("tkestack.io/other", "3"),   Allowed),
        row(User,      "changes another annotation through pods/status", status.note("x/y", "3"),               Allowed),
        row(User,      "adds a finalizer",                             mapped.patch(json!({ "metadata": { "finalizers": ["a.b/c"] } })), Allowed),
        row(User,      "adds an ephemeral container",                  At("open", "mapped", "ephemeralcontainers").patch(ephemeral()), Allowed),
        row(User,      "resizes it",                                   At("open", "mapped", "resize").patch(resize()), Allowed),
        row(User,      "evicts it",                                    At("open", "mapped", "eviction").post(eviction("mapped")), Allowed),
        row(User,      "deletes it",                                   mapped.delete(),                         Allowed),
        row(User,      "labels it where the level became baseline",    At("turned", "mapped", "").patch(label.clone()), Allowed),
        row(User,      "labels a terminating one",                     At("open", "terminating", "").patch(label), Allowed),
        row(Admin,     "sets another condition",                       status.patch(other),                     Allowed),
        row(Kubelet,   "reports the pod's status",                     status.patch(ready.clone()),             Allowed),
        row(Kubelet,   "reports it where the level became baseline",   At("turned", "mapped", "status").patch(ready.clone()), Allowed),
        row(Kubelet,   "reports the status of a pod with nothing",     At("open", "plain", "status").patch(ready), Allowed),
        row(Kubelet,   "deletes a terminated pod",                     mapped.delete(),                         Allowed),
        row(Scheduler, "binds a pod that asks",                        At("open", "unscheduled", "binding").post(bind), Allowed),
        row(Scheduler, "binds it with its request and mark, as Volcano does",  At("open", "unscheduled", "binding").post(repeated), Allowed),
        row(Scheduler, "reports that a pod with a request fits nowhere",       At("open", "unscheduled", "status").patch(unschedulable), Allowed),
    ])
}

#[test]
fn writes_without_our_annotations_are_not_affected() -> Result<()> {
    on_both(|session| session.check(&rows(session)?))
}

/// The whole life of a pod, with the real scheduler and the real kubelet.
#[test]
fn a_pod_is_created_mapped_changed_unmapped_and_evicted() -> Result<()> {
    on_both(|session| {
        session.namespace("life", &[])?;
        let at = |subresource| At("life", "web", subresource);
        let value = || -> Result<Option<String>> {
            let stored = session.done(Admin, &at("").get())?;
            Ok(stored["metadata"]["annotations"][ANNOTATION]
                .as_str()
                .map(str::to_owned))
        };
        let mut web = annotated(pod("web"), json!({ ANNOTATION: "", "x/y": "1" }));
        web["spec"]["nodeSelector"] = json!({ "kubernetes.io/hostname": "node1" });
        web["spec"]["readinessGates"] = json!([{ "conditionType": ANNOTATION }]);
        session.done(User, &create("life", web))?;
        session.running("life", "web")?;

        session.done(Enforcer, &at("status").patch(mapping()))?;
        ensure!(
            value()?.as_deref() == Some(RESULT),
            "not mapped: {:?}",
            value()?
        );
        session.eventually("the kubelet to call the mapped pod Ready", || {
            ensure!(is_true(session, "Ready")?, "not Ready");
            Ok(())
        })?;
        session.done(User, &at("").note(ANNOTATION, ""))?;
        ensure!(value()?.as_deref() == Some(""), "not reset: {:?}", value()?);
        session.done(Enforcer, &at("status").patch(mapping()))?;
        ensure!(
            value()?.as_deref() == Some(RESULT),
            "not mapped again: {:?}",
            value()?
        );

        let failed = json!({ "status": { "conditions": [condition("False", "DataplaneError")] } });
        session.done(Enforcer, &at("status").patch(failed))?;
        session.eventually("the kubelet to call the pod not Ready", || {
            ensure!(!is_true(session, "Ready")?, "still Ready");
            Ok(())
        })?;
        session.done(User, &at("ephemeralcontainers").patch(ephemeral()))?;
        session.done(User, &at("resize").patch(resize()))?;
        session.eventually("the kubelet to report both", || {
            let stored = session.done(Admin, &at("").get())?;
            let debug = &stored["status"]["ephemeralContainerStatuses"][0]["state"]["running"];
            ensure!(debug.is_object(), "{}", stored["status"]);
            let cpu = &stored["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"];
            ensure!(cpu == "2m", "{}", stored["status"]);
            Ok(())
        })?;
        ensure!(
            value()?.as_deref() == Some(RESULT),
            "changed on the way: {:?}",
            value()?
        );

        session.done(User, &at("").note(ANNOTATION, Value::Null))?;
        ensure!(value()?.is_none(), "not removed: {:?}", value()?);
        let mut unmapped = annotations(&json!({ MARK: null, PER_PORT: null }));
        unmapped["status"]["conditions"] = json!([{ "type": ANNOTATION, "$patch": "delete" }]);
        session.done(Enforcer, &at("status").patch(unmapped))?;
        let left = session.done(Admin, &at("").get())?;
        ensure!(
            left["metadata"]["annotations"] == json!({ "x/y": "1" }),
            "{}",
            left["metadata"]
        );

        session.done(User, &at("eviction").post(eviction("web")))?;
        session.eventually("the evicted pod to go", || {
            let answer = session.call(Admin, &at("").get())?;
            ensure!(
                answer.code == 404,
                "{} {}",
                answer.code,
                answer.body["status"]["phase"]
            );
            Ok(())
        })?;
        refusals_of_kubelets(session)
    })
}

/// Static pods belong to the node: the kubelet runs them even where the policies refuse them, and shows
/// them in the API where they are permitted.
#[test]
fn static_pods_are_mirrored_where_requests_are_permitted() -> Result<()> {
    on_both(|session| {
        session.namespace("static", &[])?;
        let strict = [("pod-security.kubernetes.io/enforce", "baseline")];
        session.namespace("static-strict", &strict)?;
        let asks = json!({ ANNOTATION: "" });
        let placed = [
            ("static", "asks", asks.clone()),
            ("static-strict", "asks", asks),
            ("static-strict", "plain", json!({})),
        ];
        for (namespace, name, annotations) in placed {
            let mut manifest = annotated(pod(name), annotations);
            manifest["metadata"]["namespace"] = json!(namespace);
            let write = format!("printf %s '{manifest}' > {STATIC_PODS}/{namespace}-{name}.json");
            let written = session.cluster().exec("node1", &["sh", "-c", &write])?;
            ensure!(written.status.success(), "{written:?}");
        }
        let asks = session.running("static", "asks-node1")?;
        ensure!(
            asks["metadata"]["annotations"][ANNOTATION] == "",
            "{}",
            asks["metadata"]
        );
        session.running("static-strict", "plain-node1")?;
        session.eventually(
            "the kubelet to log why it may not create the mirror pod",
            || {
                let log =
                    std::fs::read_to_string(session.cluster().logs()?.join("node1-kubelet.log"))?;
                let reported = log
                    .lines()
                    .any(|line| line.contains("asks-node1") && line.contains(LABEL));
                ensure!(reported, "nothing in its log");
                Ok(())
            },
        )?;
        let strict = session.call(Admin, &At("static-strict", "asks-node1", "").get())?;
        ensure!(strict.code == 404, "{} {}", strict.code, strict.body);
        let remove = format!("rm {STATIC_PODS}/*");
        session.cluster().exec("node1", &["sh", "-c", &remove])?;
        session.eventually("the mirror pod to go", || {
            let answer = session.call(Admin, &At("static", "asks-node1", "").get())?;
            ensure!(answer.code == 404, "{}", answer.code);
            Ok(())
        })
    })
}

fn is_true(session: &Session<'_>, kind: &str) -> Result<bool> {
    let stored = session.done(Admin, &At("life", "web", "").get())?;
    let conditions = stored["status"]["conditions"]
        .as_array()
        .context("no conditions")?;
    Ok(conditions
        .iter()
        .any(|one| one["type"] == kind && one["status"] == "True"))
}

/// The audit log names every write of the real kubelets (those of the tables are impersonated): no
/// policy may have refused one.
fn refusals_of_kubelets(session: &Session<'_>) -> Result<()> {
    let log = std::fs::read_to_string(session.cluster().audit_log()?)?;
    let (mut accepted, mut refused) = (0, Vec::new());
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue; // the last line may be half written
        };
        let user = event["user"]["username"].as_str().unwrap_or_default();
        if !user.starts_with("system:node:")
            || event["objectRef"]["resource"] != "pods"
            || matches!(event["verb"].as_str(), Some("get" | "list" | "watch"))
        {
            continue;
        }
        match event["responseStatus"]["code"].as_i64() {
            // a static pod with a request where requests are refused
            Some(403) if event["objectRef"]["namespace"] == "static-strict" => {}
            Some(403 | 422) => refused.push(line.to_owned()),
            _ => accepted += 1,
        }
    }
    ensure!(
        accepted > 10,
        "only {accepted} writes of kubelets in the audit log"
    );
    ensure!(
        refused.is_empty(),
        "refused to kubelets:\n{}",
        refused.join("\n")
    );
    println!(
        "Kubernetes {}: {accepted} writes of kubelets, none refused",
        session.minor()
    );
    Ok(())
}
