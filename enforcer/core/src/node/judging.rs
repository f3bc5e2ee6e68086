//! Results that this enforcer did not write.

use std::time::Duration;

use portmapping_shared::annotation::{self, Value};
use portmapping_shared::{PodUid, contract::ANNOTATION};

use super::NodeState;
use crate::action::EventKind;
use crate::pods::state::Want;

impl NodeState {
    /// Tells people of a result that names a host port which is not the pod's. It is overwritten
    /// like anything that is not true, and nothing is ever routed by it.
    ///
    /// A result that we wrote is never forged, however old; nor is one of an earlier enforcer,
    /// whose condition, written together with it, speaks of the same ports.
    pub(super) fn check_result(&mut self, now: Duration, uid: &PodUid, first: bool) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let Some(facts) = pod.facts.as_ref() else {
            return;
        };
        let value = facts.record.annotation.as_deref().unwrap_or_default();
        let wanted = matches!(pod.want, Want::Ports(_)) && !facts.finished;
        let result = annotation::classify(value) == Value::Result;
        if !wanted || !result || pod.written.iter().any(|ours| ours == value) {
            pod.forged = None;
            return;
        }
        if first && pod.is_earlier_result() {
            let value = value.to_owned();
            pod.record_written(value);
            return;
        }
        let Some(claim) = pod.foreign_claim(value) else {
            pod.forged = None;
            return;
        };
        if pod.forged.as_deref() == Some(value) {
            return;
        }
        pod.forged = Some(value.to_owned());
        // ours was overwritten since we last saw it: nothing is on its way that would heal this
        pod.publish.echo = None;
        let note = forged(&claim, 0);
        if pod.forgeries.record(now) {
            self.emit(uid, EventKind::ForgedResult, note);
        }
    }

    /// Tells what happened too often to be told each time.
    pub(super) fn emit_suppressed(&mut self, now: Duration, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let repairs = pod.repairs.due(now);
        let forgeries = pod.forgeries.due(now);
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
