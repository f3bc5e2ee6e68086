//! Upgrades: a second enforcer starts, waits next to the one on duty, takes the node over when it has
//! its first list of pods, and may end before or after that. Then the first one is on duty again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use portmapping_enforcer_core::{PodFacts, Publication, Record, Sandbox};
use portmapping_shared::{LeasedPort, Mapping, PodUid, PortKey};
use rand::RngExt;

use crate::cluster::{TYPO, Update};
use crate::faults::named_ports;
use crate::world::{Call, World};

/// How long a keeper keeps copies of the sockets that it handed over.
const RETAIN: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct Upgrade {
    /// The enforcer that waits.
    successor: Option<Successor>,
    /// What the keeper before held at the takeover, and when that was; None: no earlier enforcer runs.
    predecessor: Option<(BTreeSet<PortKey>, Duration)>,
}

/// What an enforcer that waits has seen of the pods.
#[derive(Default)]
struct Successor {
    watch: VecDeque<Update>,
    pods: BTreeMap<PodUid, PodFacts>,
    listed: bool,
}

impl Successor {
    fn deliver(&mut self) {
        match self.watch.pop_front() {
            Some(Update::Applied(facts)) => {
                self.pods.insert(facts.pod.uid.clone(), *facts);
            }
            Some(Update::Gone(uid)) => {
                self.pods.remove(&uid);
            }
            Some(Update::Listed(living)) => {
                self.pods.retain(|uid, _| living.contains(uid));
                self.listed = true;
            }
            None => {}
        }
    }
}

impl Upgrade {
    /// No process of it is left.
    pub(crate) fn end(&mut self) {
        *self = Self::default();
    }

    /// The pods as the enforcer that waits has seen them, and will see them.
    pub(crate) fn facts(&self) -> impl Iterator<Item = &PodFacts> {
        let successor = self.successor.iter();
        successor.flat_map(|successor| {
            let coming = successor.watch.iter().filter_map(Update::facts);
            successor.pods.values().chain(coming)
        })
    }

    /// The watch of the enforcer that waits shows this, too.
    pub(crate) fn announce(&mut self, update: &Update) {
        if let Some(successor) = &mut self.successor {
            successor.watch.push_back(update.clone());
        }
    }

    /// The watch of the enforcer that waits begins again.
    pub(crate) fn list(&mut self, list: &VecDeque<Update>) {
        if let Some(successor) = &mut self.successor {
            successor.watch.clone_from(list);
        }
    }
}

impl World {
    /// An upgrade, or its undoing, makes a step.
    pub(crate) fn upgrade(&mut self) {
        let dice = self.rng.random_range(0..8);
        match &mut self.upgrade.successor {
            None if dice < 3 && self.upgrade.predecessor.is_some() => self.undo(),
            None => {
                self.record(|| "a successor starts".to_owned());
                let watch = self.snapshot();
                self.upgrade.successor = Some(Successor {
                    watch,
                    ..Successor::default()
                });
            }
            Some(_) if dice == 0 => {
                self.record(|| "the successor ends before it takes over".to_owned());
                self.seen.retired += 1;
                self.upgrade.successor = None;
            }
            Some(successor) => {
                for _ in 0..dice * 4 {
                    successor.deliver();
                }
                if successor.listed {
                    self.take_over();
                }
            }
        }
    }

    /// The enforcer that waits, if any, is able to act.
    pub(crate) fn finish_upgrade(&mut self) {
        if let Some(successor) = &mut self.upgrade.successor {
            while !successor.watch.is_empty() {
                successor.deliver();
            }
            self.take_over();
        }
    }

    fn take_over(&mut self) {
        self.record(|| "the successor takes over".to_owned());
        let late = self.stop_acting();
        // its watch has shown the last writes, too, or will
        let Some(successor) = self.upgrade.successor.take() else {
            return;
        };
        self.seen.taken_over += 1;
        self.upgrade.predecessor = Some((self.keeper.clone(), self.now));
        let kept = self.settled_mappings(&successor.pods);
        // its watch shows a result of the predecessor only later, and that looks forged
        let late_results = successor.watch.iter().filter_map(Update::uid);
        self.forged.extend(late_results.cloned());
        for facts in successor.pods.values() {
            let newest = self.pods.get(&facts.pod.uid);
            if newest.is_none_or(|newest| newest.version != facts.version) {
                self.old_results.extend(named_ports(facts));
            }
        }
        self.recover();
        self.deliver_results();
        self.watch = successor
            .pods
            .into_values()
            .map(|facts| Update::Applied(Box::new(facts)))
            .collect();
        let living = self.watch.iter().filter_map(Update::uid).cloned().collect();
        self.watch.push_back(Update::Listed(living));
        self.deliver_all();
        self.watch = successor.watch;
        self.check_kept(&kept);
        self.finish_late(late);
        // the first check of the rules comes soon
        self.ask_read();
    }

    /// The successor's enforcer ends, and perhaps its keeper: the earlier enforcer starts over with
    /// what it finds.
    fn undo(&mut self) {
        let Some((copies, since)) = self.upgrade.predecessor.take() else {
            return;
        };
        self.seen.undone += 1;
        let late = self.stop_acting();
        let keeper_ends = self.rng.random_range(0..3) == 0;
        self.record(|| format!("the upgrade is undone, keeper ends {keeper_ends}"));
        if keeper_ends {
            let copies = if self.now < since + RETAIN {
                copies
            } else {
                BTreeSet::new()
            };
            self.unheld.extend(self.keeper.difference(&copies));
            self.keeper = copies;
            // before anything else, mapped ports are held again
            for mapping in &self.kernel {
                let key = (mapping.protocol, mapping.host_port);
                if !self.other_processes.contains(&key) {
                    self.keeper.insert(key);
                    self.unheld.remove(&key);
                }
            }
        }
        let kept = self.settled_mappings(&self.pods);
        self.recover();
        self.deliver_results();
        self.relist();
        self.check_kept(&kept);
        self.finish_late(late);
        // the first check of the rules comes soon
        self.ask_read();
    }

    /// The enforcer on duty may not act any more. A change of the rules ends before the next enforcer reads
    /// them, or does not begin: each change holds the lock that the next enforcer takes first. Returns the
    /// writes to the API server that end later.
    fn stop_acting(&mut self) -> Vec<Publication> {
        for _ in 0..self.rng.random_range(0..=self.calls.len()) {
            self.answer();
        }
        let under_way = std::mem::take(&mut self.calls).into_iter();
        let mut late: Vec<Publication> = under_way
            .filter_map(|call| match call {
                Call::Publish(publication) => Some(*publication),
                _ => None,
            })
            .collect();
        if self.rng.random_range(0..2) == 0 {
            self.finish_late(std::mem::take(&mut late));
        }
        late
    }

    /// Writes of an enforcer that is not on duty any more: no one gets the answers.
    fn finish_late(&mut self, late: Vec<Publication>) {
        for publication in late {
            self.seen.late += 1;
            self.forged.insert(publication.pod.uid.clone());
            self.write(&publication);
        }
    }

    /// The rules of the pods that have all that they are to have. `pods`: what the next enforcer will
    /// see of them.
    fn settled_mappings(&self, pods: &BTreeMap<PodUid, PodFacts>) -> Vec<Mapping> {
        let desired = self.state.desired();
        let stays = |facts: &&PodFacts| {
            let uid = &facts.pod.uid;
            let rules = desired.iter().filter(|mapping| mapping.owner == *uid);
            let complete = self.leases(uid).iter().all(|lease| {
                let key = (lease.protocol, lease.host_port);
                rules
                    .clone()
                    .any(|rule| (rule.protocol, rule.host_port) == key)
            });
            let sandbox = self.living.get(uid);
            let files = self.files.values();
            let own = |file: &&Sandbox| sandbox.is_some_and(|sandbox| sandbox.uid == file.uid);
            let newest = files.clone().filter(own).max_by_key(|file| file.written);
            // the next enforcer knows the address, too, and no other result names it. Without a result, of
            // two pods that the API shows at one address it cannot tell which got it later
            let there = |ip: &IpAddr| {
                let known = newest.map_or(&facts.pod_ips, |file| &file.ips);
                let lives = sandbox.is_some_and(|sandbox| sandbox.ips.contains(ip));
                let mut named = files.clone().filter(|file| file.ips.contains(ip));
                let shown = pods.values().filter(|other| other.pod_ips.contains(ip));
                let alone = newest.is_some() || shown.count() == 1;
                lives && known.contains(ip) && alone && named.all(|file| own(&file))
            };
            let known = self.reference.facts(uid);
            let agreed = known.is_some_and(|known| known.version == facts.version);
            // an invalid request leaves the last valid one, and only the last enforcer remembers it if it is
            // not published yet, or if a restored object has an older one
            let Record {
                annotation,
                mark,
                condition,
            } = &facts.record;
            let confirmed = condition.as_ref().is_some_and(|condition| condition.status);
            let mark = mark.as_deref().unwrap_or_default();
            let marked = |lease: &LeasedPort| {
                let (port, protocol) = (lease.container_port, lease.protocol);
                let at = lease.host_ip.map(|ip| format!(",\"hostIP\":\"{ip}\""));
                let at = at.unwrap_or_default();
                mark.contains(&format!(
                    "{{\"containerPort\":{port},\"protocol\":\"{protocol}\"{at}}}"
                ))
            };
            let valid = annotation.as_ref().is_some_and(|value| {
                value != TYPO || (confirmed && self.leases(uid).iter().all(marked))
            });
            let whole = |mapping: &Mapping| {
                let port = i64::from(mapping.host_port.get());
                let all = self.pods.values().chain(pods.values());
                let mut declared = all.flat_map(|other| {
                    let containers = other.spec.lasting_containers();
                    containers.flat_map(|container| &container.ports)
                });
                // a static one may count only for the next enforcer, also one of a pod that has just ended
                let claimed = declared.any(|declared| declared.host_port == port);
                let held = self.keeper.contains(&(mapping.protocol, mapping.host_port));
                held && !claimed && self.kernel.contains(mapping) && there(&mapping.pod_ip)
            };
            agreed && valid && complete && !facts.finished && rules.clone().all(whole)
        };
        let settled: BTreeSet<&PodUid> = pods
            .values()
            .filter(stays)
            .map(|facts| &facts.pod.uid)
            .collect();
        let kept = desired
            .iter()
            .filter(|mapping| settled.contains(&mapping.owner));
        kept.cloned().collect()
    }

    /// I6: an upgrade keeps the mappings.
    fn check_kept(&mut self, mappings: &[Mapping]) {
        let desired = self.state.desired();
        if let Some(lost) = mappings.iter().find(|mapping| !desired.contains(mapping)) {
            self.broken = Some(format!("I6: {lost} was lost in an upgrade"));
        }
    }
}
