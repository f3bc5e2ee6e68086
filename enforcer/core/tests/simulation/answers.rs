//! Keeper, kernel and API server carry out what they are asked, or fail.

use portmapping_enforcer_core::{Publication, PublishOutcome};
use portmapping_shared::{Mapping, Plan, PodUid, PortKey};
use rand::RngExt;
use std::net::IpAddr;
use std::time::Duration;

use crate::world::{Call, World};

impl World {
    /// One random call gets its answer, now and then a failure.
    pub(crate) fn answer(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let mut at = self.rng.random_range(0..self.calls.len());
        let keepers = |call: &Call| matches!(call, Call::Hold(_) | Call::Release(_));
        if keepers(&self.calls[at]) {
            // the keeper answers one call at a time, in order
            at = self.calls.iter().position(keepers).unwrap_or(at);
        }
        let call = self.calls.remove(at);
        let fails = !self.no_faults && self.rng.random_range(0..8) == 0;
        match call {
            Call::Hold(keys) | Call::Release(keys) if fails => {
                self.state.keeper_failed(self.now, &keys);
            }
            Call::Hold(keys) => self.hold(&keys),
            Call::Release(keys) => {
                for key in &keys {
                    self.keeper.remove(key);
                    self.unheld.remove(key);
                    self.reference.held.remove(key);
                }
                self.state.released(self.now, &keys);
            }
            Call::Program(plan) if fails => {
                self.state
                    .programmed(self.now, &plan, Err("lock held".to_owned().into()));
            }
            Call::Program(plan) => self.program(&plan),
            Call::Publish(publication) => self.publish(&publication, fails),
            Call::ReadPod(pod, asked) => self.read_pod(&pod.uid, asked, fails),
            Call::Observe => self.observe(fails),
        }
        self.collect();
    }

    /// What is read during a change is ignored, or read again.
    fn observe(&mut self, fails: bool) {
        let changing = self
            .calls
            .iter()
            .any(|call| matches!(call, Call::Program(_)));
        if changing && self.rng.random_range(0..2) == 0 {
            self.seen.read_again += 1;
            return self.calls.push(Call::Observe);
        }
        self.read_asked = None;
        if fails {
            return self.state.read_failed(self.now);
        }
        if !changing {
            self.damaged = false;
            self.reference.rules.clone_from(&self.kernel);
            self.reference.intact = self.intact;
        }
        self.state
            .observed(self.now, self.kernel.clone(), self.intact);
    }

    /// The kubelet has reported whatever happened to the sandbox by now.
    fn read_pod(&mut self, uid: &PodUid, asked: Duration, fails: bool) {
        let shown = self.pods.get(uid).filter(|facts| !facts.finished && !fails);
        let living = self.living.get(uid).map(|sandbox| &sandbox.ips);
        let lives = |ip: &IpAddr| living.is_some_and(|ips| ips.contains(ip));
        let runs = shown.filter(|facts| facts.pod_ips.iter().all(lives));
        let running_at = runs.map(|facts| facts.pod_ips.clone()).unwrap_or_default();
        self.record(|| format!("read {uid}: {running_at:?}"));
        if self.reference.confirm(uid, asked, &running_at) {
            self.seen.confirmed += 1;
        }
        self.state.pod_read(self.now, uid, asked, &running_at);
    }

    fn hold(&mut self, keys: &[PortKey]) {
        let mut outcomes = Vec::new();
        for key in keys {
            if self.other_processes.contains(key) {
                outcomes.push((*key, Err("Address already in use".to_owned())));
            } else {
                self.keeper.insert(*key);
                self.unheld.remove(key);
                outcomes.push((*key, Ok(())));
            }
        }
        let held = outcomes.iter().filter(|(_, outcome)| outcome.is_ok());
        self.reference.held.extend(held.map(|(key, _)| *key));
        let refused = outcomes.iter().filter(|(_, outcome)| outcome.is_err());
        for (key, _) in refused {
            self.reference.held.remove(key);
        }
        self.state.held(self.now, outcomes);
    }

    fn program(&mut self, plan: &Plan) {
        if self.refuses(plan) {
            let refusal = Err("no such protocol".to_owned().into());
            return self.state.programmed(self.now, plan, refusal);
        }
        self.change_kernel(plan);
        self.reference.programmed(plan);
        self.state.programmed(self.now, plan, Ok(()));
    }

    /// Whether this kernel refuses a rule of the plan.
    pub(crate) fn refuses(&self, plan: &Plan) -> bool {
        let refused = |mapping: &Mapping| self.unsupported.contains(&mapping.owner);
        plan.to_create.iter().any(refused)
    }

    pub(crate) fn change_kernel(&mut self, plan: &Plan) {
        for mapping in &plan.to_remove {
            if self.kernel.remove(mapping) {
                let key = (mapping.protocol, mapping.host_port);
                self.record_use(key, &mapping.owner);
            }
        }
        for mapping in &plan.to_create {
            self.check_new(mapping);
            self.record_use((mapping.protocol, mapping.host_port), &mapping.owner);
            self.kernel.insert(mapping.clone());
        }
        self.intact = true;
    }

    /// I1: no other pod before the cool-down is over. I7: no rule without a hold.
    fn check_new(&mut self, mapping: &Mapping) {
        let key = (mapping.protocol, mapping.host_port);
        if let Err(broken) = self.is_early(key, &mapping.owner) {
            self.broken = Some(broken);
        }
        if !self.keeper.contains(&key) && !self.unheld.contains(&key) {
            self.broken = Some(format!("I7: {mapping} without a hold"));
        }
    }

    fn publish(&mut self, publication: &Publication, fails: bool) {
        let uid = &publication.pod.uid;
        let lost_answer = fails && self.rng.random_range(0..2) == 0;
        let mut outcome = PublishOutcome::Failed;
        if !self.is_newest(publication) {
            self.seen.conflicts += 1;
            outcome = PublishOutcome::Conflict;
        } else if !fails || lost_answer {
            self.write(publication);
            if let Some(facts) = self.pods.get(uid).filter(|_| !fails) {
                let version = facts.version.clone();
                outcome = PublishOutcome::Written { version };
            }
        }
        self.record(|| format!("publish {uid} {:?}: {outcome:?}", publication.wanted));
        self.state.published(self.now, uid, outcome);
    }

    fn is_newest(&self, publication: &Publication) -> bool {
        let facts = self.pods.get(&publication.pod.uid);
        facts.map(|facts| &facts.version) == Some(&publication.version)
    }

    /// The API server carries a publication out, unless the pod has changed.
    pub(crate) fn write(&mut self, publication: &Publication) {
        if !self.is_newest(publication) {
            return;
        }
        let (uid, wanted) = (&publication.pod.uid, &publication.wanted);
        if wanted.condition.as_ref().is_some_and(|c| c.status) {
            self.seen.mapped += 1;
        }
        if let Some(facts) = self.pods.get_mut(uid) {
            if facts.record != publication.current {
                // a version from before a restoration, given again: a client of the API server cannot tell
                self.last_word.remove(uid);
                if self.seen.restored == 0 {
                    self.broken = Some(format!("{:?} was never true", publication.current));
                }
            }
            // a patch leaves out what does not change
            if publication.current.annotation != wanted.annotation {
                facts.record.annotation.clone_from(&wanted.annotation);
            }
            if publication.current.mark != wanted.mark {
                facts.record.mark.clone_from(&wanted.mark);
            }
            facts.record.condition.clone_from(&wanted.condition);
        }
        self.show(uid);
    }
}
