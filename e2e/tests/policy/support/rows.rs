//! Tables: who does what, and what the answer is.

use anyhow::{Result, bail};
use serde_json::Value;

use super::NOT_THROUGH_STATUS;
use super::caller::{Answer, Call, Form, Who};
use super::world::Session;

/// What comes of it.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Done, with no warning of ours.
    Allowed,
    /// Done, with a warning that contains this.
    Warned(&'static str),
    /// Accepted, and annotations, owners and spec of the pod stay as they were.
    NoEffect,
    /// 403 by this policy, with this text.
    Refused(Policy, &'static str),
    /// 403 by RBAC, before any policy is evaluated.
    NoRight,
    /// 422: the API server itself refuses it.
    Invalid,
}

/// The policies of `manifests/base`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Policy {
    Users,
    Namespaces,
    Enforcer,
    Webhook,
}

impl Policy {
    fn reply(self) -> &'static str {
        match self {
            Self::Users => "ValidatingAdmissionPolicy 'portmapping-users'",
            Self::Namespaces => "ValidatingAdmissionPolicy 'portmapping-namespaces'",
            Self::Enforcer => "ValidatingAdmissionPolicy 'portmapping-enforcer'",
            Self::Webhook => "ValidatingAdmissionPolicy 'portmapping-webhook'",
        }
    }
}

/// A row of a table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    who: Who,
    does: String,
    call: Call,
    outcome: Outcome,
}

pub(crate) fn row(who: Who, does: impl Into<String>, call: Call, outcome: Outcome) -> Row {
    Row {
        who,
        does: does.into(),
        call,
        outcome,
    }
}

/// A refusal by the policy for users.
pub(crate) fn refused(says: &'static str) -> Outcome {
    Outcome::Refused(Policy::Users, says)
}

/// A refusal of what others write through pods/status.
pub(crate) fn not_through_status() -> Outcome {
    Outcome::Refused(Policy::Enforcer, NOT_THROUGH_STATUS)
}

/// A refusal by the policy for namespaces whose Pod Security level forbids host ports.
pub(crate) fn unlabelled(says: &'static str) -> Outcome {
    Outcome::Refused(Policy::Namespaces, says)
}

impl Session<'_> {
    /// Tries every row. A request that should be refused is sent as it is. One that should pass is sent as a
    /// dry run, through the same admission, so that no row depends on another one.
    pub(crate) fn check(&self, rows: &[Row]) -> Result<()> {
        let mut wrong = Vec::new();
        for row in rows {
            if let Err(error) = self.check_row(row) {
                wrong.push(format!("{:?} {}: {error:#}", row.who, row.does));
            }
        }
        if wrong.is_empty() {
            println!(
                "Kubernetes {}: {} rows as expected",
                self.minor(),
                rows.len()
            );
            return Ok(());
        }
        bail!(
            "Kubernetes {}: {} of {} rows are wrong:\n  {}",
            self.minor(),
            wrong.len(),
            rows.len(),
            wrong.join("\n  ")
        )
    }

    fn check_row(&self, row: &Row) -> Result<()> {
        let passes = matches!(
            row.outcome,
            Outcome::Allowed | Outcome::Warned(_) | Outcome::NoEffect
        );
        let mut call = row.call.clone();
        if passes {
            let joint = if call.path.contains('?') { '&' } else { '?' };
            call.path = format!("{}{joint}dryRun=All", call.path);
        }
        let before = match row.outcome {
            Outcome::NoEffect => Some(self.stored(&row.call)?),
            _ => None,
        };
        let answer = self.call(row.who, &call)?;
        judge(&row.outcome, &answer, before.as_ref())
    }

    /// The pod that a request is about.
    fn stored(&self, call: &Call) -> Result<Value> {
        let pod: Vec<_> = call.path.split(['/', '?']).take(7).collect();
        let get = Call {
            method: "GET",
            path: pod.join("/"),
            form: Form::Json,
            body: Value::Null,
        };
        Ok(self.call(Who::Admin, &get)?.body)
    }
}

fn judge(outcome: &Outcome, answer: &Answer, before: Option<&Value>) -> Result<()> {
    let Answer { code, warnings, .. } = answer;
    let message = answer.message();
    let ours: Vec<_> = warnings
        .iter()
        .filter(|warning| warning.contains("portmapping"))
        .collect();
    match outcome {
        Outcome::Allowed | Outcome::Warned(_) | Outcome::NoEffect if !answer.is_fine() => {
            bail!("{code} {message}")
        }
        Outcome::Allowed if !ours.is_empty() => bail!("warned: {ours:?}"),
        Outcome::Warned(says) if !ours.iter().any(|warning| warning.contains(says)) => {
            bail!("no warning contains {says:?}: {ours:?}")
        }
        Outcome::NoEffect => {
            let before = before.unwrap_or(&Value::Null);
            for part in [
                "/metadata/annotations",
                "/metadata/ownerReferences",
                "/spec",
            ] {
                let (was, is) = (before.pointer(part), answer.body.pointer(part));
                if was != is {
                    bail!("{part} was {was:?} and became {is:?}");
                }
            }
            Ok(())
        }
        Outcome::Refused(policy, says) => {
            if *code != 403 || !message.contains(policy.reply()) || !message.contains(says) {
                bail!(
                    "{code}, not a 403 of {} with {says:?}: {message}",
                    policy.reply()
                );
            }
            Ok(())
        }
        Outcome::NoRight if *code != 403 || message.contains("ValidatingAdmissionPolicy") => {
            bail!("{code}, not a 403 of RBAC: {message}")
        }
        Outcome::Invalid if *code != 422 => bail!("{code}, not a 422: {message}"),
        Outcome::Allowed | Outcome::Warned(_) | Outcome::NoRight | Outcome::Invalid => Ok(()),
    }
}
