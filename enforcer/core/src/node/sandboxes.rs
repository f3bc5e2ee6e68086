//! What the runtime's results say of the pods' sandboxes, and what a removed result means.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::{NodeState, PodUid};
use crate::action::Action;
use crate::sandbox::{Sandbox, SandboxId};

impl NodeState {
    /// The runtime created a sandbox, or changed one. The API may not have shown the pod yet, and
    /// the pod may ask for nothing.
    pub fn sandbox_up(&mut self, now: Duration, sandbox: Sandbox) {
        self.record_up(now, sandbox);
        self.converge(now);
    }

    /// The runtime removed a sandbox. Another pod may soon get its addresses, whatever the API
    /// still says.
    pub fn sandbox_down(&mut self, now: Duration, id: &SandboxId) {
        self.record_down(now, id);
        self.converge(now);
    }

    /// All sandboxes of the runtime: those seen before that are missing are gone. Pods whose
    /// sandbox was never seen keep the addresses that the API names.
    pub fn sandboxes_listed(&mut self, now: Duration, mut sandboxes: Vec<Sandbox>) {
        let listed: BTreeSet<&SandboxId> = sandboxes.iter().map(|sandbox| &sandbox.id).collect();
        let gone = self.addresses.ids().filter(|id| !listed.contains(id));
        let gone: Vec<SandboxId> = gone.cloned().collect();
        sandboxes.sort_by_key(|sandbox| sandbox.written);
        for sandbox in sandboxes {
            self.record_up(now, sandbox);
        }
        for id in gone {
            self.record_down(now, &id);
        }
        self.converge(now);
    }

    /// The API server answered `Action::ReadPod`: the addresses at which the pod runs; none if it does
    /// not run, is being deleted, is gone, or could not be read.
    pub fn pod_read(
        &mut self,
        now: Duration,
        uid: &PodUid,
        asked: Duration,
        running_at: &[IpAddr],
    ) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        let runs = pod.confirmed(now, asked, running_at);
        let (reported, _) = pod.addressed;
        let known = |uid: &PodUid| self.facts(uid).is_some();
        let taken = |ip: &IpAddr| self.addresses.is_named(*ip, reported, known);
        // another sandbox may have the address by now
        if runs && !running_at.iter().any(taken) {
            self.addresses.forget_ended(uid);
            self.update_addresses(uid);
        }
        self.agenda.mark(uid.clone());
        self.converge(now);
    }

    /// Asks for a read of the pod if its result was removed and the API still names its address.
    pub(super) fn confirm(&mut self, now: Duration, uid: &PodUid) {
        let named = self.facts(uid).map(|facts| &facts.pod_ips);
        let ended = |ip: &IpAddr| self.addresses.has_ended(uid, *ip);
        let stale = named.is_some_and(|ips| ips.iter().any(ended));
        let stale = stale && self.addresses.newest(uid).is_none();
        let pod = self.pods.get_mut(uid);
        if let Some(pod) = pod.and_then(|pod| pod.confirmation_due(now, stale)) {
            self.actions.push(Action::ReadPod { pod, asked: now });
        }
    }

    fn record_up(&mut self, now: Duration, sandbox: Sandbox) {
        let arrival = self.arrival();
        for uid in self.addresses.up(sandbox, arrival) {
            // rules found at the start lead where the pod was, and it may have moved since
            if let Some((newest, _)) = self.addresses.newest(&uid)
                && let Some(pod) = self.pods.get_mut(&uid)
            {
                let ips = &newest.ips;
                pod.recovered.retain(|rule| ips.contains(&rule.pod_ip));
            }
            self.update_addresses(&uid);
            self.update_static_ports(now, &uid);
        }
    }

    fn record_down(&mut self, now: Duration, id: &SandboxId) {
        let known = |uid: &PodUid| self.pods.get(uid).is_some_and(|pod| pod.facts.is_some());
        if let Some(uid) = self.addresses.down(id, known) {
            self.update_addresses(&uid);
            self.update_static_ports(now, &uid);
        }
    }

    /// Finds a pod's addresses again, and marks the pods that gain or lose one.
    pub(super) fn update_addresses(&mut self, uid: &PodUid) {
        let pod = self.pods.get(uid);
        let found = self.addresses.locate(uid, pod, self.ports.leases(uid));
        self.agenda.extend(self.addresses.claim(uid, found.claim));
        if let Some(pod) = self.pods.get_mut(uid)
            && (&pod.ips, &pod.source) != (&found.ips, &found.source)
        {
            pod.ips = found.ips;
            pod.source = found.source;
            self.agenda.mark(uid.clone());
        }
    }
}
