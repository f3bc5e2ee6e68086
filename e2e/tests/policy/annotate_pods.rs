//! How may a user change the annotation of a running pod?

use anyhow::Result;
use serde_json::{Value, json};

use crate::support::caller::Who::{Admin, User};
use crate::support::objects::{At, SYSTEM};
use crate::support::rows::Outcome::Allowed;
use crate::support::rows::{Row, row, unlabelled};
use crate::support::world::on_both;
use crate::support::{ANNOTATION, LABEL, REQUEST};

/// Both ways to write it.
const WAYS: [&str; 2] = ["", "status"];

#[rustfmt::skip] // a table is read by its columns
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for way in WAYS {
        let note = |namespace, pod, value: Value| At(namespace, pod, way).note(ANNOTATION, value);
        let does = |what: &str| format!("{what} through pods/{way}");
        rows.extend([
            row(User, does("asks"),                              note("open", "plain", json!("")),          Allowed),
            row(User, does("asks for certain ports"),            note("open", "plain", json!(REQUEST)),     Allowed),
            row(User, does("asks with a blank"),                 note("open", "plain", json!(" \n\t")),     Allowed),
            row(User, does("asks for other ports"),              note("open", "asked", json!(REQUEST)),     Allowed),
            row(User, does("removes a request"),                 note("open", "asked", Value::Null),        Allowed),
            row(User, does("resets a result"),                   note("open", "mapped", json!("")),         Allowed),
            row(User, does("asks for other ports over a result"), note("open", "mapped", json!(REQUEST)),   Allowed),
            row(User, does("removes a result"),                  note("open", "mapped", Value::Null),       Allowed),
            row(User, does("resets a result in the system's namespace"), note(SYSTEM, "mapped", json!("")), Allowed),
            row(User, does("asks in baseline"),                  note("baseline", "plain", json!("")),      unlabelled(LABEL)),
            row(User, does("asks for certain ports in baseline"), note("baseline", "plain", json!(REQUEST)), unlabelled(LABEL)),
            row(Admin, does("asks in baseline"),                 note("baseline", "plain", json!("")),      unlabelled(LABEL)),
            row(User, does("asks in baseline with the label"),   note("permitted", "plain", json!("")),     Allowed),
            row(User, does("resets a result where the level became baseline"),   note("turned", "mapped", json!("")),   unlabelled(LABEL)),
            row(User, does("removes a result where the level became baseline"),  note("turned", "mapped", Value::Null), Allowed),
        ]);
    }
    rows
}

#[test]
fn a_user_may_change_the_request_of_a_running_pod_as_at_its_creation() -> Result<()> {
    on_both(|session| session.check(&rows()))
}
