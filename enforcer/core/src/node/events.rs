//! Events on pods.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{EventKind, NodeState, PodUid};
use crate::action::{Action, PodEvent};
use crate::pods::suppressed_note;

impl NodeState {
    /// Another program puts its rules before ours each time, and ours stay behind them.
    pub fn rules_contested(&mut self) {
        let owners: BTreeSet<PodUid> = self.kernel.owners().cloned().collect();
        for uid in owners {
            let note = "another program of the node puts its rules before those of portmapping in table \
                        nat again and again, so they stay behind: if connections to the host ports \
                        do not arrive, look what comes first (iptables -t nat -S PREROUTING)";
            self.emit(&uid, EventKind::RulesContested, note.to_owned());
        }
    }

    /// Tells the pods whose damaged rules are all back.
    pub(super) fn emit_repaired(&mut self, now: Duration) {
        for uid in self.kernel.take_repaired() {
            let Some(pod) = self.pods.get_mut(&uid) else {
                continue;
            };
            if pod.repairs.record(now) {
                self.emit(&uid, EventKind::Repaired, repaired(""));
            }
            self.agenda.mark(uid);
        }
    }

    /// Emits the events that were held back and are due.
    pub(super) fn emit_suppressed(&mut self, now: Duration, uid: &PodUid) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let repairs = pod.repairs.due(now);
        let forgeries = pod.forgery.suppressed_note(now);
        if let Some(times) = repairs {
            self.emit(uid, EventKind::Repaired, repaired(&suppressed_note(times)));
        }
        if let Some(note) = forgeries {
            self.emit(uid, EventKind::ForgedResult, note);
        }
    }

    /// Emits an event that follows a change of the pod. A user may change it without end.
    pub(super) fn emit_for_change(
        &mut self,
        now: Duration,
        uid: &PodUid,
        kind: EventKind,
        mut note: String,
    ) {
        let pod = self.pods.get_mut(uid);
        if let Some(left_out) = pod.and_then(|pod| pod.allowance.take(now)) {
            if left_out > 0 {
                note = format!("{note} ({left_out} events before it were left out)");
            }
            self.emit(uid, kind, note);
        }
    }

    pub(super) fn emit(&mut self, uid: &PodUid, kind: EventKind, note: String) {
        if let Some(facts) = self.facts(uid) {
            let pod = facts.pod.clone();
            let event = Action::Event(PodEvent { pod, kind, note });
            self.actions.push(event);
        }
    }
}

/// The note of `MappingRepaired`.
fn repaired(suppressed: &str) -> String {
    format!(
        "rules of this pod were removed or altered on the node, not by the enforcer{suppressed}; \
         they are back"
    )
}
