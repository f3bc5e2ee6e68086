//! What must always hold, and what must be true in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_enforcer_core::{AddressSource, PodFacts, PodStatus, Publication, Record};
use portmapping_shared::{
    LeasedPort, Mapping, Plan, PodUid, PortKey, PortRequest, ResultEntry, annotation,
};

use crate::cluster::TYPO;
use crate::runtime::LEFTOVER;
use crate::world::{EPOCH, World, config};

/// Damage that is repaired within this time is no write; longer for a pod that is being deleted. A lost result is
/// no damage of that kind.
const GRACE: Duration = Duration::from_secs(2);
const DELETION: Duration = Duration::from_secs(5);

impl World {
    /// When a plan is asked for: it creates only desired rules and removes none of them (I6), it
    /// creates a pod's ports together (I4), and none of them is a static one.
    pub(crate) fn check_plan(&mut self, plan: &Plan) {
        let desired = self.state.desired();
        if plan
            .to_create
            .iter()
            .any(|mapping| !desired.contains(mapping))
            || plan
                .to_remove
                .iter()
                .any(|mapping| desired.contains(mapping))
        {
            self.broken = Some(format!("I6: {plan:?}, desired {desired:?}"));
        }
        let leased: BTreeMap<PodUid, usize> = self
            .state
            .status()
            .pods
            .into_iter()
            .map(|pod| (pod.uid, pod.lease.len()))
            .collect();
        let creators: BTreeSet<&PodUid> = plan.to_create.iter().map(|m| &m.owner).collect();
        for uid in creators {
            let own = desired.iter().filter(|mapping| mapping.owner == *uid);
            let wanted: BTreeSet<PortKey> = own.map(|m| (m.protocol, m.host_port)).collect();
            if leased.get(uid) != Some(&wanted.len()) {
                self.broken = Some(format!("I4: {uid} gets {wanted:?}, of {leased:?}"));
            }
        }
        for mapping in &plan.to_create {
            if self
                .reference
                .is_static((mapping.protocol, mapping.host_port), mapping.host_ip)
            {
                self.broken = Some(format!("{mapping} on a static hostPort"));
            }
        }
    }

    /// I2: True only when every port that it names is held, with a rule to an address of this pod.
    pub(crate) fn check_publication(&mut self, publication: &Publication) {
        let wanted = &publication.wanted;
        if let Some(refused) = wanted.condition.as_ref().filter(|c| !c.status) {
            self.check_refusal(&publication.pod.uid, &publication.version, refused);
        }
        if self.damaged || wanted.condition.as_ref().is_none_or(|c| !c.status) {
            // rules flushed since they were last read are repaired later
            return;
        }
        let value = wanted.annotation.as_deref().unwrap_or_default();
        if value == TYPO {
            // the last valid request counts; the state after each step is checked anyway
            self.seen.typos += 1;
            return;
        }
        let Some(entries) = annotation::decode(value) else {
            self.broken = Some(format!("I2: True with {value:?}"));
            return;
        };
        let uid = &publication.pod.uid;
        let leases = self.leases(uid);
        if !self.reference.is_mapped(uid, &leases) {
            self.broken = Some(format!("I10: True for {uid}, not mapped: {leases:?}"));
        }
        if !self.restoring && !self.reference.is_result(uid, &entries) {
            self.broken = Some(format!("{uid} does not ask for {entries:?}"));
        }
        // container port 80 is the one with a static hostPort
        for entry in entries.iter().filter(|entry| entry.container_port != 80) {
            let ruled = self.kernel.iter().find(|mapping| {
                let host_ip = mapping.host_ip.map(|ip| ip.to_string());
                mapping.owner == *uid
                    && mapping.host_port.get() == entry.host_port
                    && mapping.container_port.get() == entry.container_port
                    && mapping.protocol == entry.protocol
                    && host_ip.unwrap_or_default() == entry.host_ip
                    && mapping.pod_ip.to_string() == entry.pod_ip
            });
            let key = ruled.map(|mapping| (mapping.protocol, mapping.host_port));
            let held = |key| self.keeper.contains(&key) || self.unheld.contains(&key);
            if !self.intact || !key.is_some_and(held) {
                self.broken = Some(format!("I2: {entry:?} of {uid} without rule or hold"));
            }
        }
    }

    pub(crate) fn leases(&self, uid: &PodUid) -> Vec<LeasedPort> {
        let pods = self.state.status().pods.into_iter();
        let own = pods.filter(|pod| pod.uid == *uid);
        own.flat_map(|pod| pod.lease).collect()
    }

    /// I10: a pod that is known not to be mapped is not left True for longer than a repair may take.
    fn check_truth(&mut self) -> Result<(), String> {
        let pods = self.state.status().pods;
        let mapped = |pod: &PodStatus| self.reference.is_mapped(&pod.uid, &pod.lease);
        let unmapped: Vec<&PodStatus> = pods.iter().filter(|pod| !mapped(pod)).collect();
        self.unmapped
            .retain(|uid, _| unmapped.iter().any(|pod| pod.uid == *uid));
        for pod in unmapped {
            let Some(facts) = self.reference.facts(&pod.uid) else {
                continue;
            };
            // the newest version, and the state machine has seen it: it ignores outdated ones
            let newest = self.pods.get(&pod.uid).map(|facts| &facts.version);
            let condition = facts.record.condition.as_ref();
            let says_true = condition.is_some_and(|condition| condition.status);
            if facts.finished || !says_true || newest != Some(&facts.version) {
                self.unmapped.remove(&pod.uid);
                continue;
            }
            let since = *self.unmapped.entry(pod.uid.clone()).or_insert(self.now);
            let grace = match pod.source {
                _ if facts.deleting => DELETION,
                AddressSource::Nowhere => Duration::ZERO,
                AddressSource::Status | AddressSource::Sandbox(_) => GRACE,
            };
            if pod.refusal.is_none() && self.now >= since + grace {
                return Err(format!("I10: True since {since:?} and not mapped: {pod:?}"));
            }
        }
        Ok(())
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        self.check_truth()?;
        self.check_previous()?;
        self.check_uses()?;
        self.check_stale()?;
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        self.state.audit().map_err(|why| format!("audit: {why}"))?;
        let mut owners: BTreeMap<PortKey, &PodUid> = BTreeMap::new();
        let mut places: BTreeMap<IpAddr, &PodUid> = BTreeMap::new();
        for mapping in &self.kernel {
            let key = (mapping.protocol, mapping.host_port);
            let owner = owners.entry(key).or_insert(&mapping.owner);
            if **owner != mapping.owner {
                return Err(format!("I1: {mapping}, and {owner} has that port too"));
            }
            let owner = places.entry(mapping.pod_ip).or_insert(&mapping.owner);
            if **owner != mapping.owner {
                return Err(format!("I3: {mapping}, and {owner} has that address too"));
            }
            if mapping.host_port.get() == 20_003 {
                return Err(format!("excluded port given away: {mapping}"));
            }
        }
        for mapping in self.state.desired() {
            self.reference.check_mapping(&mapping)?;
            if !self.restoring && !self.reference.is_requested(&mapping) {
                return Err(format!("{mapping}, which its pod does not ask for"));
            }
        }
        Ok(())
    }

    /// I8: without further faults, everything ends as it should.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.no_faults = true;
        self.finish_upgrade();
        self.other_processes.clear();
        self.set_host_addresses(&["10.0.0.1", "::1"]);
        self.set_closed([false; 2]);
        // what this asks for is checked before anything else changes
        self.collect();
        // the runtime removes ended sandboxes, and creates one for every pod that exists
        let pods = &self.pods;
        self.living
            .retain(|uid, _| pods.get(uid).is_some_and(|facts| !facts.finished));
        let living = &self.living;
        self.files.retain(|id, file| {
            let lives = living.values().any(|sandbox| sandbox.id == *id);
            let leftover = file.uid.as_str().starts_with(LEFTOVER) && file.written < EPOCH;
            lives || leftover
        });
        for uid in self.pods.keys().cloned().collect::<Vec<_>>() {
            if !self.living.contains_key(&uid) {
                self.start_sandbox_of(&uid);
            }
        }
        for uid in self.pods.keys().cloned().collect::<Vec<_>>() {
            if let Some(sandbox) = self.living.get(&uid).cloned() {
                let named = self.named_by_status(&sandbox.ips);
                if let Some(facts) = self.pods.get_mut(&uid) {
                    facts.pod_ips = named;
                }
            }
            self.show(&uid);
        }
        self.overflow();
        self.relist();
        for _ in 0..400 {
            self.collect();
            self.deliver_results();
            while !self.calls.is_empty() {
                self.answer();
            }
            while !self.watch.is_empty() {
                self.deliver();
                self.collect();
            }
            self.now += Duration::from_secs(1);
            self.ask_read();
            self.tick();
            self.check()?;
        }
        for facts in self.pods.values() {
            self.check_end(facts)?;
            self.check_last_word(facts)?;
        }
        for mapping in &self.kernel {
            if !self.pods.contains_key(&mapping.owner) {
                return Err(format!("I3: {mapping} outlives its pod"));
            }
        }
        self.check_leaks()
    }

    /// What a user wrote last counts, whatever was in flight at that moment.
    fn check_last_word(&self, facts: &PodFacts) -> Result<(), String> {
        let Some(word) = self.last_word.get(&facts.pod.uid) else {
            return Ok(());
        };
        let Record {
            annotation,
            mark,
            condition,
        } = &facts.record;
        let asked = word
            .as_deref()
            .map(|word| PortRequest::resolve(word, &facts.spec, config().max_ports));
        let counts = match asked {
            None => annotation.is_none(),
            // of a pod that has ended only a result is removed
            Some(asked) if facts.finished => {
                let same = |text: &String| {
                    let found = PortRequest::resolve(text, &facts.spec, config().max_ports);
                    found.is_ok_and(|found| asked.is_ok_and(|asked| found == asked))
                };
                let is_request = annotation.as_ref().is_some_and(same);
                annotation == word || annotation.as_deref() == Some("") || is_request
            }
            Some(Err(_)) => annotation == word,
            Some(Ok(request)) => {
                let mapped = condition.as_ref().is_some_and(|c| c.status);
                annotation.is_some() && (!mapped || *mark == Some(request.to_mark()))
            }
        };
        if counts {
            return Ok(());
        }
        Err(format!("the last word {word:?} was lost: {facts:?}"))
    }

    fn check_end(&self, facts: &PodFacts) -> Result<(), String> {
        let uid = &facts.pod.uid;
        let asks = facts.record.annotation.is_some() && !facts.finished;
        let rules: Vec<&Mapping> = self.kernel.iter().filter(|m| m.owner == *uid).collect();
        let condition = facts.record.condition.as_ref();
        let shown = condition.map(|c| (c.status, c.reason.as_str()));
        let published = annotation::decode(facts.record.annotation.as_deref().unwrap_or_default());
        let typo = facts.record.annotation.as_deref() == Some(TYPO);
        let names_ports = published.is_some();
        let true_entries = published.is_some_and(|entries| {
            let ours = entries.iter().filter(|entry| entry.container_port != 80);
            let backed = |entry: &ResultEntry| {
                rules.iter().any(|rule| {
                    (rule.host_port.get(), rule.container_port.get())
                        == (entry.host_port, entry.container_port)
                        && rule.protocol == entry.protocol
                        && rule.pod_ip.to_string() == entry.pod_ip
                })
            };
            self.reference.is_result(uid, &entries) && ours.clone().all(backed)
        });
        let whole = (typo || true_entries) && self.has_all_rules(facts);
        let wrong = || {
            let text = format!("I8: {uid} ended as {shown:?} with {rules:?}: {facts:?}");
            Err(text)
        };
        match (asks, shown) {
            (true, Some((true, _))) if whole => Ok(()),
            (true, Some((false, "InvalidRequest"))) if !rules.is_empty() => wrong(),
            (true, Some((false, "NoFreePort"))) if names_ports => wrong(),
            (true, Some((false, "NoFreePort" | "InvalidRequest" | "HostIPNotOnNode")))
                if shown.is_some_and(|(_, reason)| self.is_refused_rightly(uid, reason)) =>
            {
                Ok(())
            }
            (true, Some((false, "DataplaneError"))) if self.unsupported.contains(uid) => Ok(()),
            (false, None | Some((false, _))) if rules.is_empty() => Ok(()),
            _ => wrong(),
        }
    }

    /// No port rests any more: what is held is leased.
    fn check_leaks(&self) -> Result<(), String> {
        let status = self.state.status();
        let lent = status.pods.iter().flat_map(|pod| &pod.lease);
        let leased: BTreeSet<PortKey> = lent.map(|l| (l.protocol, l.host_port)).collect();
        if self.keeper != leased {
            return Err(format!("held {:?}, leased {leased:?}", self.keeper));
        }
        let mut lent = status.pods.iter().flat_map(|pod| &pod.lease);
        let is_static = |lease: &&LeasedPort| {
            let key = (lease.protocol, lease.host_port);
            self.reference.is_static(key, lease.host_ip)
        };
        if let Some(lease) = lent.find(is_static) {
            return Err(format!("{lease:?} is a static hostPort and leased"));
        }
        let counts = &status.counts;
        if counts.cooling + counts.quarantined > 0 {
            return Err(format!("ports never come back: {counts:?}"));
        }
        Ok(())
    }
}
