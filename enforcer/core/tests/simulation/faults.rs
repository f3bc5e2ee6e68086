//! What operators and other controllers do: host addresses change, results are replaced, the API
//! server's data is restored from a backup.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portmapping_enforcer_core::{Closed, PodFacts, PublishOutcome};
use portmapping_shared::{HostPort, PodUid, PortKey, annotation};
use rand::RngExt;

use crate::cluster::MOVED_HOST;
use crate::world::{Call, World};

/// The API server's data at an earlier time.
#[derive(Default)]
pub(crate) struct Backup {
    pods: BTreeMap<PodUid, PodFacts>,
    last_word: BTreeMap<PodUid, Option<String>>,
    version: u32,
}

impl World {
    /// The node gets or loses an address.
    pub(crate) fn change_host_addresses(&mut self) {
        let all = ["10.0.0.1", "::1", MOVED_HOST];
        let count = self.rng.random_range(1..=all.len());
        self.set_host_addresses(&all[..count]);
    }

    pub(crate) fn set_host_addresses(&mut self, addresses: &[&str]) {
        self.record(|| format!("host addresses {addresses:?}"));
        let addresses = addresses.iter().filter_map(|ip| ip.parse().ok());
        let addresses: BTreeSet<IpAddr> = addresses.collect();
        self.reference.host_addresses = Some(addresses.clone());
        self.state.host_addresses_read(self.now, addresses);
    }

    /// A firewall drops all forwarded packets of a family, or does so no more.
    pub(crate) fn change_forward(&mut self) {
        let closed = [self.rng.random_ratio(1, 4), self.rng.random_ratio(1, 4)];
        self.set_closed(closed);
    }

    pub(crate) fn set_closed(&mut self, closed: [bool; 2]) {
        self.record(|| format!("FORWARD is closed: {closed:?}"));
        self.reference.closed = closed;
        self.state.forward_read(self.now, as_read(closed));
    }

    /// Another controller writes the user's request over the result, each time that it sees one.
    pub(crate) fn contest(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        for _ in 0..8 {
            let word = self.last_word.get(&uid).cloned().flatten();
            let Some((facts, word)) = self.pods.get_mut(&uid).zip(word) else {
                return;
            };
            let value = facts.record.annotation.as_deref().unwrap_or_default();
            if annotation::decode(value).is_none() {
                return;
            }
            facts.record.annotation = Some(word);
            facts.annotation_manager = Some("another".to_owned());
            self.show(&uid);
            self.record(|| format!("result of {uid} replaced"));
            self.catch_up();
        }
    }

    /// A user asks for another port again and again.
    pub(crate) fn churn(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        for protocol in ["TCP", "UDP", "SCTP"] {
            let number = 9040 + self.rng.random_range(0..6);
            let request = format!(r#"[{{"containerPort":{number},"protocol":"{protocol}"}}]"#);
            self.annotate(&uid, Some(request));
            self.catch_up();
        }
    }

    /// Everything that is under way arrives, one after the other.
    fn catch_up(&mut self) {
        while !self.watch.is_empty() || !self.calls.is_empty() {
            self.deliver();
            self.collect();
            self.answer();
            if let Err(broken) = self.check() {
                self.broken.get_or_insert(broken);
            }
        }
    }

    pub(crate) fn back_up(&mut self) {
        self.backup = Backup {
            pods: self.pods.clone(),
            last_word: self.last_word.clone(),
            version: self.version,
        };
    }

    /// The API server's data is that of the backup: pods vanish, pods come back, versions are given
    /// again. Calls and watches end.
    pub(crate) fn restore(&mut self) {
        self.record(|| "restored from a backup".to_owned());
        self.seen.restored += 1;
        self.pods = self.backup.pods.clone();
        self.last_word = self.backup.last_word.clone();
        self.version = self.backup.version;
        // an older result than the state machine remembers looks forged
        self.forged.extend(self.pods.keys().cloned());
        self.previous.clear();
        let named = self.pods.values().flat_map(named_ports);
        self.old_results.extend(named);
        let (publications, others) = std::mem::take(&mut self.calls)
            .into_iter()
            .partition(|call| matches!(call, Call::Publish(_)));
        self.calls = others;
        for call in Vec::<Call>::from_iter(publications) {
            if let Call::Publish(publication) = call {
                let uid = &publication.pod.uid;
                self.state.published(self.now, uid, PublishOutcome::Failed);
            }
        }
        self.restoring = true;
        self.list();
        self.upgrade.list(&self.watch);
    }
}

/// The ports that the result of a pod names.
pub(crate) fn named_ports(facts: &PodFacts) -> Vec<(PodUid, PortKey)> {
    let value = facts.record.annotation.as_deref().unwrap_or_default();
    let entries = annotation::decode(value).unwrap_or_default().into_iter();
    let ports = entries.filter_map(|entry| Some((entry.protocol, HostPort::new(entry.host_port)?)));
    ports.map(|key| (facts.pod.uid.clone(), key)).collect()
}

/// What the state machine is told of a firewall, by family.
pub(crate) fn as_read(closed: [bool; 2]) -> Closed {
    let text = |closed: bool| closed.then(|| "no client reaches pods (the test)".to_owned());
    let [ipv4, ipv6] = closed.map(text);
    Closed { ipv4, ipv6 }
}
