//! Which pods may a user create, and in which namespace?

use anyhow::Result;
use serde_json::json;

use crate::support::caller::Who::{Admin, Kubelet, User};
use crate::support::objects::{annotated, create, pod};
use crate::support::rows::Outcome::Allowed;
use crate::support::rows::{Row, refused, row, unlabelled};
use crate::support::world::{Session, on_both};
use crate::support::{ANNOTATION, LABEL, MARK, MARKED, PER_PORT, REQUEST, RESULT, WAY_OUT};

#[rustfmt::skip] // a table is read by its columns
fn rows(session: &Session<'_>) -> Result<Vec<Row>> {
    let asks = |namespace| create(namespace, annotated(pod("new"), json!({ ANNOTATION: "" })));
    let mut stands = annotated(pod("new"), json!({ "kubernetes.io/config.mirror": "c3RhdGlj" }));
    stands["spec"]["nodeName"] = json!("node1");
    let with = |annotations| create("open", annotated(pod("new"), annotations));
    Ok(vec![
        row(User, "asks in baseline",                            asks("baseline"),    unlabelled(LABEL)),
        row(User, "asks in restricted",                          asks("restricted"),  unlabelled(LABEL)),
        row(User, "asks where the label has another value",      asks("mislabelled"), unlabelled(LABEL)),
        row(User, "asks in baseline with the label",             asks("permitted"),   Allowed),
        row(User, "asks in privileged",                          asks("privileged"),  Allowed),
        row(User, "asks in an unlabelled namespace",             asks("open"),        Allowed),
        row(Admin, "asks in baseline",                           asks("baseline"),    unlabelled(LABEL)),
        row(User, "creates a pod without annotations in restricted", create("restricted", pod("new")), Allowed),
        row(User, "creates a pod with other annotations in restricted", create("restricted", annotated(pod("new"), json!({ "x/y": "z" }))), Allowed),
        row(User, "asks for certain ports",                      with(json!({ ANNOTATION: REQUEST })), Allowed),
        row(User, "creates a pod with a result",                 with(json!({ ANNOTATION: RESULT })), refused(WAY_OUT)),
        row(User, "creates a pod with a broken value",           with(json!({ ANNOTATION: "yes\nplease" })), refused("yes please is not a valid request; only the enforcer writes a result. Write")),
        row(User, "creates a pod with a per-port annotation",    with(json!({ ANNOTATION: "", PER_PORT: "23817" })), refused("host-port.tkestack.io/* is written by the enforcer only")),
        row(User, "creates a pod with a mark and no annotation", with(json!({ MARK: "[]" })), refused("tkestack.io/portmapping-request is written by the webhook only")),
        row(User, "creates a pod with a mark and the annotation, past no webhook", with(json!({ ANNOTATION: "", MARK: MARKED })), Allowed),
        row(User, "makes a mirror pod of a static pod that asks",        mirror(session, "open", "")?,          refused("only a kubelet creates mirror pods")),
        row(Admin, "makes a mirror pod of a static pod that asks",       mirror(session, "open", "")?,          refused("only a kubelet creates mirror pods")),
        row(User, "makes a mirror pod that does not ask",  create("open", stands), refused("only a kubelet creates mirror pods")),
        row(Kubelet, "mirrors a static pod that asks, in kube-system", mirror(session, "kube-system", "")?,   Allowed),
        row(Kubelet, "mirrors a static pod that asks, in baseline",    mirror(session, "baseline", "")?,      unlabelled(LABEL)),
        row(Kubelet, "mirrors a static pod with a result",             mirror(session, "open", RESULT)?,      refused(WAY_OUT)),
    ])
}

/// A mirror pod as the kubelet of node1 makes it.
fn mirror(
    session: &Session<'_>,
    namespace: &str,
    value: &str,
) -> Result<crate::support::caller::Call> {
    let node = session.node("node1")?;
    let hash = "c3RhdGlj";
    let mut mirror = annotated(
        pod("static-node1"),
        json!({
            ANNOTATION: value, "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash,
            "kubernetes.io/config.source": "file",
        }),
    );
    mirror["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Node",
        "name": "node1", "uid": node["metadata"]["uid"], "controller": true }]);
    mirror["spec"]["nodeName"] = json!("node1");
    mirror["spec"]["tolerations"] = json!([{ "operator": "Exists", "effect": "NoExecute" }]);
    Ok(create(namespace, mirror))
}

#[test]
fn users_create_requests_where_host_ports_are_permitted_and_nothing_else() -> Result<()> {
    on_both(|session| session.check(&rows(session)?))
}
