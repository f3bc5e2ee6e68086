//! What no single moment shows: which pod had a port before, and since when a rule should be gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use portmapping_enforcer_core::{PodFacts, Record};
use portmapping_shared::{HostPort, Mapping, PodUid, PortKey, annotation};

use crate::faults::named_ports;
use crate::world::{COOLDOWN, Call, World};

/// A rule that should be gone is removed within this time, unless the kernel refuses or is read.
const STALE: Duration = Duration::from_secs(2);

/// The pod that was mapped at a port.
pub(crate) struct LastUse {
    pub(crate) uid: PodUid,
    pub(crate) name: String,
    /// When it still had the port.
    pub(crate) until: Duration,
}

impl World {
    /// I1: no other pod gets a port before its cool-down is over.
    pub(crate) fn check_uses(&mut self) -> Result<(), String> {
        self.forget_old_results();
        for (key, uid) in self.leased() {
            if self.is_early(key, &uid)? {
                // its clients know the port from the pod before, so it rests after this pod, too
                self.record_use(key, &uid);
            }
            if self.last.get(&key).is_some_and(|last| last.uid == uid) {
                self.record_use(key, &uid);
            }
        }
        let ruled: Vec<(PortKey, PodUid)> = self.kernel.iter().map(port_and_owner).collect();
        for (key, uid) in ruled {
            self.record_use(key, &uid);
        }
        Ok(())
    }

    /// Whether the pod gets the port before another one's cool-down is over, because it may: it has the
    /// other's name, or an old result of its names the port. An error where it may not.
    pub(crate) fn is_early(&mut self, key: PortKey, uid: &PodUid) -> Result<bool, String> {
        let Some(last) = self.last.get(&key) else {
            return Ok(false);
        };
        if last.uid == *uid || self.now >= last.until + COOLDOWN {
            return Ok(false);
        }
        let name = self.names.get(uid);
        if name == Some(&last.name) {
            self.seen.inherited += 1;
        } else if !self.is_in_old_result(name, key) {
            let (had, until) = (&last.uid, last.until);
            return Err(format!(
                "I1: {key:?} goes to {uid}, and {had} had it until {until:?}"
            ));
        }
        Ok(true)
    }

    pub(crate) fn record_use(&mut self, key: PortKey, uid: &PodUid) {
        let last = LastUse {
            uid: uid.clone(),
            name: self.names.get(uid).cloned().unwrap_or_default(),
            until: self.now,
        };
        self.last.insert(key, last);
    }

    pub(crate) fn leased(&self) -> BTreeMap<PortKey, PodUid> {
        let pods = self.state.status().pods.into_iter();
        let leases = pods.flat_map(|pod| {
            let keys = pod.lease.into_iter().map(|l| (l.protocol, l.host_port));
            keys.map(move |key| (key, pod.uid.clone()))
        });
        leases.collect()
    }

    /// The node has started again: each pod whose condition confirms a port is to get that port.
    pub(crate) fn record_previous(&mut self) {
        for facts in self.pods.values().filter(|facts| !facts.finished) {
            let Record {
                annotation,
                condition,
                ..
            } = &facts.record;
            let Some(condition) = condition.as_ref().filter(|condition| condition.status) else {
                continue;
            };
            let entries = annotation::decode(annotation.as_deref().unwrap_or_default());
            for entry in entries.unwrap_or_default() {
                let (host, container) = (entry.host_port, entry.container_port);
                let described = format!(":{host} -> {container}/{}", entry.protocol);
                let usable = (20_000..20_012).contains(&host) && host != 20_003;
                if container != 80
                    && usable
                    && condition.message.contains(&described)
                    && let Some(host) = HostPort::new(host)
                {
                    let key = (entry.protocol, host);
                    self.previous.insert(key, facts.clone());
                }
            }
        }
    }

    /// After a reboot no pod gets a port that another one had and still asks for.
    pub(crate) fn check_previous(&mut self) -> Result<(), String> {
        let leased = self.leased();
        let mut again = Vec::new();
        let (pods, others, reference) = (&self.pods, &self.other_processes, &self.reference);
        self.previous.retain(|key, had| {
            let uid = &had.pod.uid;
            let now = pods.get(uid).filter(|facts| !facts.finished);
            let asks = now.is_some_and(|now| now.record.annotation == had.record.annotation);
            let own = leased.get(key) == Some(uid);
            if own {
                again.push((*key, uid.clone()));
            }
            asks && !own && !others.contains(key) && !reference.is_static(*key, None)
        });
        for (key, uid) in again {
            self.seen.previous += 1;
            self.record_use(key, &uid);
        }
        let stolen = |(key, had): &(&PortKey, &PodFacts)| {
            let owner = leased.get(*key);
            owner.is_some_and(|owner| *owner != had.pod.uid)
        };
        match self.previous.iter().find(stolen) {
            Some((key, had)) => Err(format!("{key:?} was a port of {} before", had.pod)),
            None => Ok(()),
        }
    }

    /// Whether an old result of a pod of this name has the port: the pod itself, or the next one of its name.
    fn is_in_old_result(&self, name: Option<&String>, key: PortKey) -> bool {
        let mut old = self.old_results.iter();
        old.any(|(uid, of)| *of == key && self.names.get(uid) == name)
    }

    /// A result counts no more once neither the API server nor a watch shows it.
    fn forget_old_results(&mut self) {
        if self.old_results.is_empty() {
            return;
        }
        let shown = self.pods.values().chain(self.reference.all());
        let shown = shown.chain(self.watch.iter().filter_map(|update| update.facts()));
        let shown = shown.chain(self.upgrade.facts());
        let named: BTreeSet<(PodUid, PortKey)> = shown.flat_map(named_ports).collect();
        self.old_results.retain(|old| named.contains(old));
    }

    /// I3: a rule that leads to no pod, or to a port that its pod does not ask for, is removed as soon as
    /// the kernel can be changed.
    pub(crate) fn check_stale(&mut self) -> Result<(), String> {
        let program = |call: &Call| matches!(call, Call::Program(_));
        if self.read_asked.is_some() || self.calls.iter().any(program) || self.restoring {
            self.stale.clear();
            return Ok(());
        }
        let wrong = |mapping: &&Mapping| {
            self.reference.check_mapping(mapping).is_err() || !self.reference.is_requested(mapping)
        };
        let now = self.now;
        let stale = self.kernel.iter().filter(wrong).map(|mapping| {
            let since = self.stale.get(mapping).copied();
            (mapping.clone(), since.unwrap_or(now))
        });
        self.stale = stale.collect();
        match self.stale.iter().find(|(_, since)| now >= **since + STALE) {
            Some((mapping, since)) => Err(format!("I3: {mapping} is stale since {since:?}")),
            None => Ok(()),
        }
    }
}

fn port_and_owner(mapping: &Mapping) -> (PortKey, PodUid) {
    let key = (mapping.protocol, mapping.host_port);
    (key, mapping.owner.clone())
}
