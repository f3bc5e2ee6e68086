//! Events in; ports, pods and kernel are asked what follows; actions out.

mod agenda;
mod allocate;
mod audit;
mod config;
mod converge;
mod events;
mod host_addresses;
mod recovery;
mod replies;
mod sandboxes;
mod static_claims;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_shared::{LeasedPort, Mapping, Plan, PodRef, PodUid, PortKey};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::action::{Action, Closed, EventKind, PublishOutcome, RuleError};
use crate::addresses::Addresses;
use crate::kernel::{Kernel, ports_of};
use crate::pods::{PodFacts, PodState, Refusal, Want};
use crate::ports::{KEEPER_RETRY, Ports};

pub use config::Config;
pub use recovery::Recovered;
pub use status::{Counts, PodStatus, Status};

/// Every decision of one node's enforcer. The crate's documentation draws the flow.
///
/// Each event marks the pods it may concern, and `converge` asks of those what is still
/// missing. `audit` says whether asking all pods would find more.
#[derive(Debug)]
pub struct NodeState {
    config: Config,
    rng: StdRng,
    ports: Ports,
    pods: BTreeMap<PodUid, PodState>,
    addresses: Addresses,
    kernel: Kernel,
    hosts: host_addresses::HostAddresses,
    /// Whether a complete list of pods has been shown.
    listed: bool,
    agenda: agenda::Agenda,
    /// How many pods, changes of pods and sandboxes have arrived.
    arrivals: u64,
    replies: replies::Silences,
    actions: Vec<Action>,
}

impl NodeState {
    /// An empty node. The first plan creates the chains, because the kernel is not known to have
    /// them.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            ports: Ports::new(config.range, config.excluded.clone(), config.rest_limits()),
            config,
            pods: BTreeMap::new(),
            addresses: Addresses::default(),
            kernel: Kernel::new(BTreeSet::new(), false),
            hosts: host_addresses::HostAddresses::default(),
            listed: false,
            agenda: agenda::Agenda::default(),
            arrivals: 0,
            replies: replies::Silences::default(),
            actions: Vec::new(),
        }
    }

    /// What to do now, in order. Call this after every other method, and carry all of it out.
    #[must_use]
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Every rule that should be in the kernel.
    #[must_use]
    pub fn desired(&self) -> BTreeSet<Mapping> {
        self.kernel.all_desired().cloned().collect()
    }

    /// When `tick` is due at the latest; None: not before another event. Always after the `now` of
    /// the last call. What waits for an answer has no deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let own = [self.ports.next_deadline(), self.kernel.next_deadline()];
        own.into_iter()
            .chain([self.agenda.later().next()])
            .flatten()
            .min()
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        self.converge(now);
    }

    /// The API shows this pod.
    pub fn pod_applied(&mut self, now: Duration, facts: PodFacts) {
        let uid = facts.pod.uid.clone();
        if let Some(pod) = self.pods.get_mut(&uid) {
            if pod.publish.is_outdated(&facts.version) {
                pod.outdated = Some(Box::new(facts));
                return;
            }
            pod.outdated = None;
        }
        self.pod_shown(now, facts, true);
    }

    /// `now_shown`: the API shows the pod in this moment, not before events that came since.
    fn pod_shown(&mut self, now: Duration, facts: PodFacts, now_shown: bool) {
        let uid = facts.pod.uid.clone();
        self.forget_namesake(now, &facts);
        // those of pods that have ended are not read: they may be of long ago
        if !facts.finished && self.hosts.named_by_pod(&facts.host_ips) {
            // what is published names them
            self.mark_all();
        }
        let (seq, reported) = (self.arrival(), self.config.epoch + now);
        let pod = self.pods.entry(uid.clone());
        let pod = pod.or_insert_with(|| PodState::new(seq));
        let before = pod.facts.take();
        let first = before.is_none();
        let gone = |facts: &PodFacts| facts.deleting && facts.finished;
        if first {
            let condition = facts.record.condition.clone();
            pod.confirmed_by = condition.filter(|condition| condition.status);
        }
        if gone(&facts) && !before.as_ref().is_some_and(gone) {
            pod.publish.wait_for_deletion(now);
        }
        let known_ips = before.as_ref().map(|before| &before.pod_ips);
        if known_ips != Some(&facts.pod_ips) {
            pod.addressed = (reported, seq);
        }
        let events = pod.update_want(now, &facts, before.as_ref(), self.config.max_ports);
        let known_version = before.as_ref().map(|before| &before.version);
        pod.publish
            .seen(&facts.record, first, known_version != Some(&facts.version));
        pod.recovered.clear();
        let runtime_uid = facts.runtime_uid.clone();
        let linked = runtime_uid.filter(|runtime| self.addresses.link(&uid, runtime));
        if now_shown {
            self.addresses.api_says(&uid, &facts.pod_ips);
        }
        pod.facts = Some(facts);
        self.update_static_ports(now, &uid);
        if let Some(runtime_uid) = linked {
            self.update_addresses(&runtime_uid);
            self.update_static_ports(now, &runtime_uid);
        }
        self.update_addresses(&uid);
        self.update_leases(now, &uid);
        for (kind, note) in events {
            self.emit_for_change(now, &uid, kind, note);
        }
        let (pod, leases) = (self.pods.get_mut(&uid), self.ports.leases(&uid));
        if let Some(note) = pod.and_then(|pod| pod.check_result(now, leases, first)) {
            self.emit(&uid, EventKind::ForgedResult, note);
        }
        self.agenda.mark(uid);
        self.converge(now);
    }

    /// The API says that this pod is gone.
    pub fn pod_gone(&mut self, now: Duration, uid: &PodUid) {
        self.forget(now, uid);
        self.converge(now);
    }

    /// `pod_applied` has shown all pods of the node: the others are gone.
    pub fn relisted(&mut self, now: Duration, living: &BTreeSet<PodUid>) {
        let gone = self.pods.keys().filter(|uid| !living.contains(*uid));
        for uid in gone.cloned().collect::<Vec<_>>() {
            self.forget(now, &uid);
        }
        let mut present = Vec::new();
        for pod in self.pods.values_mut() {
            // a list shows the present: no older event is still to come, and what it showed counts,
            // because a backup of the API server's data brings old versions back
            pod.publish.forget_outdated();
            present.extend(pod.outdated.take());
        }
        self.listed = true;
        for facts in present {
            self.pod_shown(now, *facts, false);
        }
        self.mark_all();
        self.converge(now);
    }

    /// The keeper answered `Action::Hold`: each port is bound, or why it is not.
    pub fn held(&mut self, now: Duration, outcomes: Vec<(PortKey, Result<(), String>)>) {
        for (key, outcome) in outcomes {
            match outcome {
                Ok(()) => self.ports.bound(now, key),
                Err(why) => self.bind_refused(now, key, &why),
            }
        }
        self.converge(now);
    }

    /// The keeper answered `Action::Hold`, but the kernel did not bind these, and not because another
    /// process has them. Each is asked for again; no other port waits for that.
    pub fn hold_failed(&mut self, now: Duration, failures: Vec<(PortKey, String)>) {
        for (key, why) in failures {
            self.ports.bind_failed(now, key);
            let owner = self.ports.owner(key).map(|(uid, _)| uid.clone());
            if let Some(pod) = owner.as_ref().and_then(|uid| self.pods.get_mut(uid)) {
                // the first stays until it is held: a new text would be one more API write
                pod.hold_failure.get_or_insert((key, why));
            }
            self.agenda.extend(owner);
        }
        self.converge(now);
    }

    /// The keeper could not be asked. What it holds it still holds.
    pub fn keeper_failed(&mut self, now: Duration, keys: &[PortKey]) {
        self.ports.keeper_failed(now, keys);
        self.converge(now);
    }

    /// The keeper answered `Action::Release`: it closed these ports.
    pub fn released(&mut self, now: Duration, keys: &[PortKey]) {
        self.ports.closed(now, keys, self.config.cooldown);
        self.converge(now);
    }

    /// The complete list of the keeper, which may be new: it is asked for every leased port that is missing, and to
    /// close what nothing needs.
    pub fn keeper_listed(&mut self, now: Duration, held: &BTreeSet<PortKey>) {
        self.ports.keeper_listed(now, held);
        self.converge(now);
    }

    /// The dataplane carried a plan out, or left the kernel as it was.
    pub fn programmed(&mut self, now: Duration, plan: &Plan, outcome: Result<(), RuleError>) {
        let (intact, succeeded) = (self.kernel.is_intact(), outcome.is_ok());
        self.kernel.applied(now, plan, outcome);
        let changed = plan.to_remove.iter().chain(&plan.to_create);
        self.agenda.extend(changed.map(|rule| rule.owner.clone()));
        if succeeded {
            if !intact {
                // while chains were missing, no pod was published
                self.mark_all();
            }
            self.emit_repaired(now);
        }
        self.begin_rests(now, ports_of(plan));
        self.converge(now);
    }

    /// The dataplane is to read the kernel back; `observed` or `read_failed` follows. Where changes leave it
    /// no time, the next one waits for it.
    pub fn read_asked(&mut self, now: Duration) {
        self.kernel.ask_read(now);
    }

    /// The dataplane could not read the kernel back.
    pub fn read_failed(&mut self, now: Duration) {
        self.kernel.end_read();
        self.converge(now);
    }

    /// The dataplane read the kernel back. False while a change is under way: what was read does not count,
    /// because it may be from before it.
    pub fn observed(&mut self, now: Duration, mappings: BTreeSet<Mapping>, intact: bool) -> bool {
        self.kernel.end_read();
        let before: Vec<PodUid> = self.kernel.owners().cloned().collect();
        let counts = self.kernel.observed(mappings, intact);
        if counts {
            // a pod may have lost its last rule, or a rule of a pod long gone may be back
            self.agenda.extend(before);
            self.mark_asking();
            let draining = self.ports.draining();
            self.begin_rests(now, draining);
        }
        self.converge(now);
        counts
    }

    /// Forwarded packets reach no pod of these families, or they do again.
    pub fn forward_read(&mut self, now: Duration, closed: Closed) {
        if self.kernel.set_closed(closed) {
            self.mark_all();
            self.converge(now);
        }
    }

    /// The API server answered a publication.
    pub fn published(&mut self, now: Duration, uid: &PodUid, outcome: PublishOutcome) {
        let pod = self.pods.get_mut(uid);
        if let Some((kind, note)) = pod.and_then(|pod| pod.published(now, outcome)) {
            self.emit_for_change(now, uid, kind, note);
        }
        self.agenda.mark(uid.clone());
        self.converge(now);
    }

    fn facts(&self, uid: &PodUid) -> Option<&PodFacts> {
        self.pods.get(uid)?.facts.as_ref()
    }

    fn arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Names are unique in the API: the pod that had this one is gone, even if no event said so.
    fn forget_namesake(&mut self, now: Duration, facts: &PodFacts) {
        if self.facts(&facts.pod.uid).is_some() {
            return;
        }
        let same = |a: &PodRef, b: &PodRef| (&a.namespace, &a.name) == (&b.namespace, &b.name);
        let namesake = self.pods.iter().find(|(_, pod)| {
            let other = pod.facts.as_ref();
            other.is_some_and(|other| same(&other.pod, &facts.pod))
        });
        if let Some(uid) = namesake.map(|(uid, _)| uid.clone()) {
            self.forget(now, &uid);
        }
    }

    /// The pod is gone: its ports rest, and its rules are to be removed.
    fn forget(&mut self, now: Duration, uid: &PodUid) {
        for lease in self.ports.leases(uid).clone() {
            self.end_lease(now, uid, &lease);
        }
        self.addresses.forget_ended(uid);
        let runtime_uid = self.addresses.unlink(uid);
        let pod = self.pods.remove(uid);
        for port in pod.iter().flat_map(|pod| &pod.static_ports) {
            self.ports.unclaim(uid, port.key);
        }
        let claims = pod.filter(|pod| !pod.static_ports.is_empty());
        if let Some(facts) = claims.and_then(|pod| pod.facts) {
            self.update_static_ports_in(now, &facts.pod.namespace);
        }
        self.agenda.wait(uid, None);
        self.agenda.mark(uid.clone());
        for uid in [Some(uid), runtime_uid.as_ref()].into_iter().flatten() {
            self.update_addresses(uid);
            self.update_static_ports(now, uid);
        }
    }

    /// Another process has the port.
    fn bind_refused(&mut self, now: Duration, key: PortKey, why: &str) {
        let Some(uid) = self.ports.owner(key).map(|(uid, _)| uid.clone()) else {
            return;
        };
        let ruled = self.kernel.is_ruled(key);
        // its last pod's clients may still send to it
        let quarantine = self.config.quarantine.max(self.config.cooldown);
        if self.ports.bind_refused(now, key, ruled, quarantine)
            && let Some(pod) = self.pods.get_mut(&uid)
        {
            let (protocol, number) = key;
            pod.refusal = Some(Refusal {
                kind: EventKind::PortConflict,
                message: format!(
                    "host port {number}/{protocol} cannot be held: {why}; find the process that \
                     has it with ss -tulpn on the node; the enforcer tries again every {} s",
                    KEEPER_RETRY.as_secs()
                ),
            });
            self.agenda.mark(uid);
        }
    }

    /// Rules of these ports may be gone: the rest of those that have none begins.
    fn begin_rests(&mut self, now: Duration, keys: impl IntoIterator<Item = PortKey>) {
        for key in keys {
            if !self.kernel.is_ruled(key) {
                self.ports.rules_removed(now, key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
