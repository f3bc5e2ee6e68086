//! How many annotations a pod may have: as many as the API server takes, unless it asks for host ports.

use anyhow::Result;
use serde_json::{Value, json};

use crate::support::caller::Who::{Admin, Enforcer, Kubelet, User};
use crate::support::objects::{At, annotated, annotations, condition, create, mapping, pod};
use crate::support::rows::Outcome::{self, Allowed};
use crate::support::rows::{Policy, Row, not_through_status, refused, row};
use crate::support::world::on_both;
use crate::support::{ANNOTATION, MARK, PER_PORT};

/// As many as fit into the 256 KiB that the API server takes, roughly.
const MOST: usize = 40_000;
const TOO_MANY: &str =
    "a pod that asks for host ports may have at most 1000 annotations; this one would have ";

/// So many annotations that mean nothing, and these.
fn padded(count: usize, others: &[(&str, &str)]) -> Value {
    let mut all: Value = (0..count)
        .map(|n| (format!("{n:x}"), json!("")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (key, value) in others {
        all[*key] = json!(value);
    }
    all
}

#[rustfmt::skip] // a table is read by its columns
fn rows() -> Vec<Row> {
    let new = |count, others: &[(&str, &str)]| create("open", annotated(pod("new"), padded(count, others)));
    let asks = [(ANNOTATION, "")];
    let not_comparable = Outcome::Refused(Policy::Enforcer, "more annotations (1100) or conditions (100) than can be compared");
    let mut rows = vec![
        row(User, "creates a pod that asks, with 1,000 annotations in all", new(999, &asks), Allowed),
        row(User, "creates a pod that asks, with 1,001 annotations in all", new(1000, &asks), refused(TOO_MANY)),
        row(User, "creates a pod that asks, with the most annotations",     new(MOST, &asks), refused(TOO_MANY)),
        row(User, "creates a pod with the most annotations",                new(MOST, &[]), Allowed),
        row(User, "creates one with a mark among them",                     new(MOST, &[(MARK, "[]")]), refused("tkestack.io/portmapping-request is written by the webhook only")),
        row(User, "creates one with a per-port annotation among them",      new(MOST, &[(PER_PORT, "1")]), refused("host-port.tkestack.io/* is written by the enforcer only")),
    ];
    for way in ["", "status"] {
        let at = |pod| At("open", pod, way);
        let does = |what: &str| format!("{what} through pods/{way}");
        let guard = if way.is_empty() { Policy::Users } else { Policy::Enforcer };
        let too_many = || Outcome::Refused(guard, TOO_MANY);
        rows.extend([
            row(User,    does("adds 1,000 annotations to a pod that asks"),      at("asked").patch(annotations(&padded(1000, &[]))),  too_many()),
            row(Admin,   does("adds the most annotations to a pod that asks"),   at("asked").patch(annotations(&padded(MOST, &[]))),  too_many()),
            row(User,    does("adds 1,000 annotations to a mapped pod"),         at("mapped").patch(annotations(&padded(1000, &[]))), too_many()),
            row(User,    does("adds 900 annotations to a mapped pod"),           at("mapped").patch(annotations(&padded(900, &[]))),  Allowed),
            row(User,    does("adds 1,000 annotations to a pod that does not ask"), at("plain").patch(annotations(&padded(1000, &[]))), Allowed),
            row(User,    does("adds the most annotations to a pod that does not ask"), at("plain").patch(annotations(&padded(MOST, &[]))), Allowed),
            row(User,    does("changes one of 2,000 annotations"),               at("crowded").note("1", "x"),                  Allowed),
            row(User,    does("removes one of 2,000 annotations"),               at("crowded").note("1", Value::Null),          Allowed),
        ]);
    }
    let crowded = At("open", "crowded", "status");
    let conditions = |one: Value| json!({ "status": { "conditions": [one] } });
    let others: Vec<_> = (0..150).map(|n| json!({ "type": format!("x/y{n}"), "status": "True" })).collect();
    rows.extend([
        row(User,    "asks and adds 1,000 annotations",                At("open", "plain", "").patch(annotations(&padded(1000, &asks))), refused(TOO_MANY)),
        row(User,    "asks with a pod of 2,000 annotations",           At("open", "crowded", "").note(ANNOTATION, ""),            refused(TOO_MANY)),
        row(User,    "adds a per-port annotation to 2,000",            At("open", "crowded", "").note(PER_PORT, "1"),             refused("host-port.tkestack.io/* is written by the enforcer only")),
        row(User,    "adds a mark to 2,000",                           At("open", "crowded", "").note(MARK, "[]"),                refused("tkestack.io/portmapping-request is written by the webhook only")),
        row(User, "asks with a pod of 2,000 annotations through pods/status", crowded.note(ANNOTATION, ""), Outcome::Refused(Policy::Enforcer, TOO_MANY)),
        row(User, "adds a per-port annotation to 2,000 through pods/status", crowded.note(PER_PORT, "1"), not_through_status()),
        row(User, "adds a mark to 2,000 through pods/status", crowded.note(MARK, "[]"), not_through_status()),
        row(Kubelet,  "reports the status of a pod of 2,000 annotations", crowded.patch(json!({ "status": { "message": "x" } })), Allowed),
        row(Admin,    "sets 150 other conditions",                        crowded.patch(json!({ "status": { "conditions": others } })), Allowed),
        row(Enforcer, "maps a pod of 2,000 annotations",                  crowded.patch(mapping()), not_comparable.clone()),
        row(Enforcer, "says why a pod of 2,000 annotations is not mapped", crowded.patch(conditions(condition("False", "DataplaneError"))), Allowed),
        row(Enforcer, "adds 150 other conditions",                        crowded.patch(json!({ "status": { "conditions": others } })), not_comparable),
        row(Enforcer, "adds 1,000 annotations of others",                 At("open", "mapped", "status").patch(annotations(&padded(1000, &[]))), Outcome::Refused(Policy::Enforcer, "the enforcer may not change annotations of others")),
    ]);
    rows
}

#[test]
fn a_pod_that_asks_has_at_most_a_thousand_annotations_and_others_as_many_as_they_like() -> Result<()>
{
    on_both(|session| {
        session.check(&rows())?;
        // a pod may have all that is allowed before the enforcer adds its own
        let full = annotated(pod("full"), padded(999, &[(ANNOTATION, "")]));
        let at = |subresource| At("open", "full", subresource);
        let mut full = full;
        full["spec"]["nodeName"] = json!("node1");
        session.done(User, &create("open", full))?;
        session.done(Enforcer, &at("status").patch(mapping()))?;
        session.done(User, &at("").note(ANNOTATION, Value::Null))?;
        let unmapped = annotations(&json!({ MARK: null, PER_PORT: null }));
        session.done(Enforcer, &at("status").patch(unmapped))?;
        session.done(Admin, &at("").delete()).map(drop)
    })
}
