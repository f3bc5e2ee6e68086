//! Which pods are processed, and when.

use std::collections::BTreeSet;
use std::time::Duration;

use portmapping_shared::PodUid;

use super::{NodeState, PodState, Want};
use crate::ports::Timers;

/// The pods to process now, and those to process later.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    now: BTreeSet<PodUid>,
    later: Timers<PodUid>,
    /// Pods processed so far.
    #[cfg(test)]
    pub(super) processed: usize,
}

impl Agenda {
    /// Marks the pod, to be processed now.
    pub(super) fn mark(&mut self, uid: PodUid) {
        self.now.insert(uid);
    }

    /// Marks the pods whose moment has come.
    pub(super) fn mark_due(&mut self, now: Duration) {
        for uid in self.later.due(now) {
            self.later.set(&uid, None);
            self.now.insert(uid);
        }
    }

    /// Replaces the moment at which the pod is processed again; None: not before an event.
    pub(super) fn wait(&mut self, uid: &PodUid, until: Option<Duration>) {
        self.later.set(uid, until);
    }

    /// The pods marked so far.
    pub(super) fn marked(&self) -> &BTreeSet<PodUid> {
        &self.now
    }

    /// The pods marked so far, which are processed then.
    pub(super) fn take(&mut self) -> BTreeSet<PodUid> {
        #[cfg(test)]
        {
            self.processed += self.now.len();
        }
        std::mem::take(&mut self.now)
    }

    /// The moments at which pods wait to be processed.
    pub(super) fn later(&self) -> &Timers<PodUid> {
        &self.later
    }
}

impl Extend<PodUid> for Agenda {
    fn extend<I: IntoIterator<Item = PodUid>>(&mut self, uids: I) {
        self.now.extend(uids);
    }
}

impl NodeState {
    /// Marks all pods, so that whatever was missed is found: after a list of pods, or new addresses of
    /// the node.
    pub(super) fn mark_all(&mut self) {
        self.agenda.extend(self.pods.keys().cloned());
        self.agenda.extend(self.kernel.owners().cloned());
    }

    /// Marks the pods that rules can concern. Pods that have ended stay in the API, as many as a user likes.
    pub(super) fn mark_asking(&mut self) {
        let asks = |(_, pod): &(&PodUid, &PodState)| pod.want != Want::Nothing;
        let asking = self.pods.iter().filter(asks);
        self.agenda.extend(asking.map(|(uid, _)| uid.clone()));
        self.agenda.extend(self.kernel.owners().cloned());
    }
}
