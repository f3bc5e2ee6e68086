//! How may a user change the annotation of a running pod?

use anyhow::Result;
use serde_json::{Value, json};

use crate::support::caller::Who::{Admin, User};
use crate::support::objects::{At, SYSTEM};
use crate::support::rows::Outcome::Allowed;
use crate::support::rows::{Row, not_through_status, row, unlabelled};
use crate::support::world::on_both;
use crate::support::{ANNOTATION, LABEL, REQUEST};

#[rustfmt::skip] // a table is read by its columns
fn rows() -> Vec<Row> {
    let note = |namespace, pod, value: Value| At(namespace, pod, "").note(ANNOTATION, value);
    let status = |pod, value: Value| At("open", pod, "status").note(ANNOTATION, value);
    vec![
        row(User, "asks",                              note("open", "plain", json!("")),          Allowed),
        row(User, "asks for certain ports",            note("open", "plain", json!(REQUEST)),     Allowed),
        row(User, "asks with a blank",                 note("open", "plain", json!(" \n\t")),     Allowed),
        row(User, "asks for other ports",              note("open", "asked", json!(REQUEST)),     Allowed),
        row(User, "removes a request",                 note("open", "asked", Value::Null),        Allowed),
        row(User, "resets a result",                   note("open", "mapped", json!("")),         Allowed),
        row(User, "asks for other ports over a result", note("open", "mapped", json!(REQUEST)),   Allowed),
        row(User, "removes a result",                  note("open", "mapped", Value::Null),       Allowed),
        row(User, "resets a result in the system's namespace", note(SYSTEM, "mapped", json!("")), Allowed),
        row(User, "asks in baseline",                  note("baseline", "plain", json!("")),      unlabelled(LABEL)),
        row(User, "asks for certain ports in baseline", note("baseline", "plain", json!(REQUEST)), unlabelled(LABEL)),
        row(Admin, "asks in baseline",                 note("baseline", "plain", json!("")),      unlabelled(LABEL)),
        row(User, "asks in baseline with the label",   note("permitted", "plain", json!("")),     Allowed),
        row(User, "resets a result where the level became baseline",   note("turned", "mapped", json!("")),   unlabelled(LABEL)),
        row(User, "removes a result where the level became baseline",  note("turned", "mapped", Value::Null), Allowed),
        row(User, "asks through pods/status",                status("plain", json!("")),                not_through_status()),
        row(User, "resets a result through pods/status",     status("mapped", json!("")),               not_through_status()),
        row(Admin, "removes a result through pods/status",   status("mapped", Value::Null),             not_through_status()),
    ]
}

#[test]
fn a_user_may_change_the_request_of_a_running_pod_as_at_its_creation() -> Result<()> {
    on_both(|session| session.check(&rows()))
}
