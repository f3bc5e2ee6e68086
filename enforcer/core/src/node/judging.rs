//! Results that this enforcer did not write.

use std::time::Duration;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{PodUid, contract::ANNOTATION};

use super::NodeState;
use crate::action::EventKind;
use crate::pod::Want;

impl NodeState {
    /// Tells people of a result that names a host port which is not the pod's. It is overwritten
    /// like anything that is not true, and nothing is ever routed by it.
    ///
    /// A result that we wrote is never forged, however old; nor is one of an earlier enforcer,
    /// whose condition, written together with it, speaks of the same ports.
    pub(super) fn judge_result(&mut self, now: Duration, uid: &PodUid, first: bool) {
        let Some(tenant) = self.tenants.get_mut(uid) else {
            return;
        };
        let Some(facts) = tenant.facts.as_ref() else {
            return;
        };
        let value = facts.record.annotation.as_deref().unwrap_or_default();
        let wanted = matches!(tenant.want, Want::Ports(_)) && !facts.finished;
        let result = annotation::classify(value) == Value::Result;
        if !wanted || !result || tenant.written.iter().any(|ours| ours == value) {
            tenant.forged = None;
            return;
        }
        if first && tenant.is_earlier_result() {
            let value = value.to_owned();
            tenant.note_written(value);
            return;
        }
        let Some(claim) = tenant.foreign_claim(value) else {
            tenant.forged = None;
            return;
        };
        if tenant.forged.as_deref() == Some(value) {
            return;
        }
        tenant.forged = Some(value.to_owned());
        // ours was overwritten since we last saw it: nothing is on its way that would heal this
        tenant.publish.echo = None;
        let note = forged(&claim, 0);
        if tenant.forgeries.note(now) {
            self.emit(uid, EventKind::ForgedResult, note);
        }
    }

    /// Tells what happened too often to be told each time.
    pub(super) fn tell_held_back(&mut self, now: Duration, uid: &PodUid) {
        let Some(tenant) = self.tenants.get_mut(uid) else {
            return;
        };
        let repairs = tenant.repairs.due(now);
        let forgeries = tenant.forgeries.due(now);
        if let Some(times) = repairs {
            self.emit(uid, EventKind::Repaired, repaired(times));
        }
        if let Some(times) = forgeries {
            self.emit(uid, EventKind::ForgedResult, forged("host ports", times));
        }
    }
}

/// The note of `MappingRepaired`.
pub(super) fn repaired(times: u32) -> String {
    let what = "rules of this pod had been removed or altered on the node; they are back";
    match times {
        0 => what.to_owned(),
        _ => format!("{what} ({times} more times since this was last told)"),
    }
}

fn forged(claim: &str, times: u32) -> String {
    let times = match times {
        0 => String::new(),
        _ => format!(" ({times} more times since this was last told)"),
    };
    format!(
        "annotation {ANNOTATION} named {claim} that this pod does not have{times}; nothing was \
         routed by it and the truth is written over it: find out who may write it"
    )
}
