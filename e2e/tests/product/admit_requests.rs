//! Which values may the annotation have? Every row of the table in the documents.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::support::pods::{annotated, annotation, entries, mapped_pod, pod};
use crate::support::space::Space;
use crate::support::{ANNOTATION, MARK, get, shared};

/// A value, and what the refusal must say about it.
const INVALID: [(&str, &str); 12] = [
    ("yes please", "it is neither empty nor a list"),
    ("null", "it is null, not a list"),
    ("{}", "it is an object, not a list"),
    ("[]", "it lists no port"),
    (
        r#"[{"containerPort":"nope"}]"#,
        r#"no container of the pod declares a port named "nope""#,
    ),
    (r#"[{"containerPort":70000}]"#, "70000 is not a port"),
    (r#"[{"containerPort":0}]"#, "0 is not a port"),
    (
        r#"[{"containerPort":9040,"hostIP":"node1"}]"#,
        "is not an IP address",
    ),
    (
        r#"[{"containerPort":9040,"protocol":"tcp"}]"#,
        r#"protocol "tcp" is not "TCP", "UDP" or "SCTP""#,
    ),
    (
        r#"[{"containerPort":9040,"weight":1}]"#,
        r#"the key "weight" is unknown"#,
    ),
    (r#"[{"protocol":"TCP"}]"#, "containerPort is missing"),
    (r#"[{"containerPort":9040}"#, "it is not valid JSON"),
];

#[test]
fn a_broken_request_is_refused_with_the_reason_and_a_value_that_works() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "admit-invalid", |space| {
            let plain = pod(
                "broken",
                &["--http", "9040"],
                &json!([{ "containerPort": 9040 }]),
            );
            for (value, why) in INVALID {
                let (fine, reply) = space.try_create(&annotated(plain.clone(), value), &[])?;
                ensure!(!fine, "{value} was accepted: {reply}");
                ensure!(
                    reply.contains(why),
                    "{value} was refused without {why:?}: {reply}"
                );
                ensure!(
                    reply.contains(value),
                    "the refusal of {value} does not quote it: {reply}"
                );
                let way_out = r#"[{"containerPort":9040,"protocol":"TCP"}]"#;
                ensure!(
                    reply.contains(way_out),
                    "the refusal of {value} shows no value that works: {reply}"
                );
            }
            let many: Vec<_> = (1..=65).map(|n| json!({ "containerPort": n })).collect();
            let many = annotated(plain, &json!(many).to_string());
            let (fine, reply) = space.try_create(&many, &[])?;
            ensure!(
                !fine && reply.contains("asks for 65 ports, more than the 64"),
                "{reply}"
            );
            let pods = space.get(&["pods"])?;
            ensure!(pods["items"] == json!([]), "a refused pod exists");
            Ok(())
        })
    })
}

#[test]
fn a_copied_result_counts_as_empty_and_warns() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "admit-copied", |space| {
            let copied = r#"[{"hostPort":22,"containerPort":9040,"protocol":"TCP","podName":"other","podIP":"10.99.99.99"}]"#;
            let copy = pod(
                "copy",
                &["--http", "9040"],
                &json!([{ "containerPort": 9040 }]),
            );
            let mut copy = annotated(copy, copied);
            copy["metadata"]["annotations"]["host-port.tkestack.io/web"] = json!("22");
            let reply = space.create(&copy)?;
            ensure!(
                reply.contains("Warning:") && reply.contains("counts as \"\""),
                "no warning: {reply}"
            );
            let copy = space.ready("copy")?;
            let mapped = entries(&copy)?;
            ensure!(
                mapped[0].pod_name == "copy" && mapped[0].host_port != 22,
                "{mapped:?}"
            );
            let notes = copy["metadata"]["annotations"]
                .as_object()
                .context("no annotations")?;
            ensure!(
                !notes.contains_key("host-port.tkestack.io/web"),
                "{notes:?}"
            );
            Ok(())
        })
    })
}

#[test]
fn a_protocol_that_the_container_does_not_declare_is_warned_of() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "admit-protocol", |space| {
            let ports = json!([{ "containerPort": 9040 }]);
            let asking = |value: &str| -> Result<String> {
                let asking = annotated(pod("other", &["--http", "9040"], &ports), value);
                let (fine, reply) = space.try_create(&asking, &["--dry-run=server"])?;
                ensure!(fine, "{reply}");
                Ok(reply)
            };
            let reply = asking(r#"[{"containerPort":9040,"protocol":"UDP"}]"#)?;
            let warning = "declares port 9040 as TCP, but the value asks for UDP";
            ensure!(
                reply.contains("Warning:") && reply.contains(warning),
                "no warning: {reply}"
            );
            let reply = asking(r#"[{"containerPort":9040,"protocol":"TCP"}]"#)?;
            ensure!(!reply.contains("Warning:"), "{reply}");
            Ok(())
        })
    })
}

#[test]
fn a_request_mark_of_a_user_is_overwritten() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "admit-mark", |space| {
            let mut marked = mapped_pod("marked");
            marked["metadata"]["annotations"][MARK] =
                json!(r#"[{"containerPort":22,"protocol":"TCP"}]"#);
            space.create(&marked)?;
            let marked = space.ready("marked")?;
            let mark = marked["metadata"]["annotations"][MARK]
                .as_str()
                .context("no mark")?;
            ensure!(
                mark == r#"[{"containerPort":9040,"protocol":"TCP"}]"#,
                "{mark}"
            );
            ensure!(entries(&marked)?.len() == 1 && entries(&marked)?[0].container_port == 9040);
            Ok(())
        })
    })
}

#[test]
fn a_pod_of_windows_nodes_is_created_without_a_gate_and_warned_of() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "admit-windows", |space| {
            let mut by_os = mapped_pod("by-os");
            by_os["spec"]["os"] = json!({ "name": "windows" });
            let mut by_selector = mapped_pod("by-selector");
            by_selector["spec"]["nodeSelector"] = json!({ "kubernetes.io/os": "windows" });
            for asking in [by_os, by_selector] {
                let reply = space.create(&asking)?;
                ensure!(
                    reply.contains("Warning:") && reply.contains("has no effect on a Windows pod"),
                    "no warning: {reply}"
                );
                let name = asking["metadata"]["name"].as_str().context("no name")?;
                let created = space.pod(name)?;
                ensure!(annotation(&created) == Some(""), "{created}");
                ensure!(
                    created["spec"]["readinessGates"].is_null(),
                    "a gate: {created}"
                );
                ensure!(
                    created["metadata"]["annotations"][MARK].is_null(),
                    "{created}"
                );
            }
            Ok(())
        })
    })
}

#[test]
fn a_dry_run_shows_the_patched_pod_and_changes_nothing() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "admit-dry-run", |space| {
            let more = ["--dry-run=server", "-o", "json"];
            let (fine, reply) = space.try_create(&mapped_pod("dry"), &more)?;
            ensure!(fine, "{reply}");
            let dry: serde_json::Value = serde_json::from_str(&reply).context("no JSON")?;
            ensure!(
                dry["spec"]["readinessGates"] == json!([{ "conditionType": ANNOTATION }]),
                "{reply}"
            );
            ensure!(annotation(&dry) == Some(""), "{reply}");
            let (fine, reply) = space.try_create(
                &annotated(
                    pod("dry", &["--http", "1"], &json!([{ "containerPort": 1 }])),
                    "broken",
                ),
                &more,
            )?;
            ensure!(!fine && reply.contains("is not a port request"), "{reply}");
            ensure!(
                space.get(&["pods"])?["items"] == json!([]),
                "a dry run made a pod"
            );
            Ok(())
        })
    })
}

#[test]
fn applying_the_manifests_again_keeps_certificate_and_registration() -> Result<()> {
    shared(|cluster| {
        let system = e2e::install::NAMESPACE;
        let read = || -> Result<_> {
            let hook = get(cluster, &["mutatingwebhookconfiguration", "portmapping"])?;
            let secret = get(
                cluster,
                &["-n", system, "secret", "portmapping-webhook-tls"],
            )?;
            let bundle = hook["webhooks"][0]["clientConfig"]["caBundle"].clone();
            ensure!(bundle.is_string(), "there is no caBundle: {hook}");
            ensure!(secret["data"].is_object(), "the Secret is empty");
            Ok((bundle, secret["data"].clone()))
        };
        let before = read()?;
        let base = e2e::paths::manifests().join("base");
        for more in [&[][..], &["--server-side", "--force-conflicts"]] {
            let mut apply = cluster.kubectl();
            apply.arg("apply").args(more).arg("-k").arg(&base);
            let output = apply.output().context("run kubectl apply")?;
            ensure!(output.status.success(), "{output:?}");
            ensure!(
                read()? == before,
                "certificate or caBundle changed after apply {more:?}"
            );
        }
        Ok(())
    })
}
