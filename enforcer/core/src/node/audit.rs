//! Whether processing only the marked pods has missed anything.

use std::fmt::Debug;
use std::time::Duration;

use super::NodeState;
use crate::addresses::PodAddresses;
use crate::ports::Timers;

impl NodeState {
    /// Compares everything that is derived with what it is derived from, and asks of every pod what
    /// is still missing. Returns the first difference, in words. Costs as much as the node is
    /// large; for tests and simulations.
    pub fn audit(&self) -> Result<(), String> {
        if !self.agenda.marked().is_empty() {
            return Err(format!("not processed: {:?}", self.agenda.marked()));
        }
        self.ports.audit()?;
        self.kernel.audit()?;
        let mut wakes = Timers::default();
        for (uid, pod) in &self.pods {
            let leases = self.ports.leases(uid);
            same("rules", self.kernel.desired(uid), &self.desired_of(uid))?;
            same("static ports", &pod.static_ports, &self.claims_of(uid).0)?;
            let kept = PodAddresses {
                ips: pod.ips.clone(),
                source: pod.source.clone(),
                claim: self.addresses.claim_of(uid),
            };
            let found = self.addresses.locate(uid, Some(pod), leases);
            same("addresses", &kept, &found)?;
            if self.listed && pod.lacks_ports(leases) && pod.refusal.is_none() {
                return Err(format!("{uid} waits for ports without a refusal"));
            }
            wakes.set(uid, pod.next_deadline());
            // at time 0 no retry is due and no write has come back too late
            if let Some(due) = pod.due_publication(Duration::ZERO, &self.progress(uid)) {
                return Err(format!("{uid} is due a write: {:?}", due.wanted));
            }
        }
        let mut rules = self.kernel.all_desired();
        if let Some(rule) = rules.find(|rule| !self.pods.contains_key(&rule.owner)) {
            return Err(format!("{rule} is desired, and its pod is gone"));
        }
        same("wakes", self.agenda.later(), &wakes)
    }
}

fn same<T: PartialEq + Debug>(what: &str, kept: &T, found: &T) -> Result<(), String> {
    if kept == found {
        return Ok(());
    }
    Err(format!("{what}: kept {kept:?}, found {found:?}"))
}
