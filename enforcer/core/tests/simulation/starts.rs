//! Starts of the enforcer, the keeper and the node.

use std::collections::BTreeSet;

use portmapping_enforcer_core::{NodeState, Recovered};
use portmapping_shared::Mapping;
use rand::RngExt;

use crate::faults::as_read;
use crate::reference::Reference;
use crate::world::{Call, World, config};

impl World {
    pub(crate) fn restart(&mut self) {
        self.record(|| "restart".to_owned());
        self.seen.restarts += 1;
        // a call under way may or may not be carried out
        if self.rng.random_range(0..2) == 0 {
            while !self.calls.is_empty() {
                self.answer();
            }
        }
        self.calls.clear();
        self.recover();
        if self.rng.random_range(0..2) == 0 {
            self.relist();
        } else {
            self.list();
        }
    }

    /// A new state machine continues from what the kernel and the keeper have at this moment.
    pub(crate) fn recover(&mut self) {
        // what was cooling and is not held is not known any more
        let (keeper, kernel) = (&self.keeper, &self.kernel);
        self.last.retain(|key, _| {
            let ruled = |rule: &Mapping| (rule.protocol, rule.host_port) == *key;
            keeper.contains(key) || kernel.iter().any(ruled)
        });
        let mut found = Recovered {
            mappings: self.kernel.clone(),
            in_other_backends: BTreeSet::new(),
            intact: self.intact,
            host_addresses: self.reference.host_addresses.clone().unwrap_or_default(),
            closed: as_read(self.reference.closed),
            held: self.keeper.clone(),
        };
        let closed = self.reference.closed;
        if self.rng.random_range(0..5) == 0 {
            // another backend than before: its table is empty, and the old one's rules are read once
            self.seen.backends += 1;
            found.in_other_backends = std::mem::take(&mut found.mappings);
            found.intact = false;
            self.kernel.clear();
            self.intact = false;
        }
        self.damaged = false;
        self.read_asked = None;
        for (uid, facts) in &self.pods {
            // a new enforcer takes a result that the last one was removing for a forged one
            if facts.record.condition.is_none() {
                self.forged.insert(uid.clone());
            }
        }
        self.unmapped.clear();
        self.stale.clear();
        self.previous.clear();
        let seed = self.rng.random();
        let known = found.mappings.iter().chain(&found.in_other_backends);
        self.reference = Reference::new(known.cloned().collect(), &found);
        self.reference.closed = closed;
        self.state = NodeState::recover(config(), seed, self.now, found);
        self.collect();
        self.updates.clear();
        self.list_results();
    }

    /// Everything on the node ends; the results of its sandboxes stay on disk.
    pub(crate) fn reboot(&mut self) {
        self.seen.reboots += 1;
        self.record(|| "reboot".to_owned());
        self.living.clear();
        self.kernel.clear();
        self.intact = false;
        self.keeper.clear();
        self.unheld.clear();
        self.calls.clear();
        self.upgrade.end();
        self.restart();
        self.record_previous();
    }

    /// The keeper ends; the next one holds nothing and is asked for its list.
    pub(crate) fn lose_keeper(&mut self) {
        self.record(|| "keeper lost".to_owned());
        self.unheld.append(&mut self.keeper);
        self.calls
            .retain(|call| !matches!(call, Call::Hold(_) | Call::Release(_)));
        self.reference.held.clear();
        self.state.keeper_listed(self.now, &BTreeSet::new());
    }
}
