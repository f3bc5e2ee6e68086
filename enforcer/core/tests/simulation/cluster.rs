//! The API server: pods are created, changed and deleted, and the watch shows it late.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmapping_enforcer_core::{PodFacts, Record};
use portmapping_shared::pod::{Container, DeclaredPort};
use portmapping_shared::{PodRef, PodSpec, PodUid};
use rand::RngExt;

use crate::world::World;

const NAMES: usize = 5;
/// An annotation that is no valid request.
pub(crate) const TYPO: &str = "nonsense";
/// An address that the node has at times.
pub(crate) const MOVED_HOST: &str = "203.0.113.7";

/// What the watch shows.
#[derive(Clone)]
pub(crate) enum Update {
    Applied(Box<PodFacts>),
    Gone(PodUid),
    /// A list is complete.
    Listed(BTreeSet<PodUid>),
}

impl Update {
    /// The pod that it shows.
    pub(crate) fn uid(&self) -> Option<&PodUid> {
        match self {
            Self::Applied(facts) => Some(&facts.pod.uid),
            Self::Gone(_) | Self::Listed(_) => None,
        }
    }

    pub(crate) fn facts(&self) -> Option<&PodFacts> {
        match self {
            Self::Applied(facts) => Some(facts),
            Self::Gone(_) | Self::Listed(_) => None,
        }
    }
}

impl World {
    pub(crate) fn random_pod(&mut self) -> Option<PodUid> {
        let count = self.pods.len();
        (count > 0)
            .then(|| self.rng.random_range(0..count))
            .and_then(|n| self.pods.keys().nth(n).cloned())
    }

    pub(crate) fn create_pod(&mut self) {
        let name = format!("pod-{}", self.rng.random_range(0..NAMES));
        if self.pods.values().any(|facts| facts.pod.name == name) {
            return;
        }
        let uid: PodUid = format!("uid-{}", self.next).parse().expect("a uid");
        self.next += 1;
        let port = |number, protocol: &str, host_port| DeclaredPort {
            container_port: number,
            protocol: protocol.to_owned(),
            host_port,
            ..DeclaredPort::default()
        };
        let mut ports = vec![port(9040, "TCP", 0), port(53, "UDP", 0), port(54, "UDP", 0)];
        ports.truncate(self.rng.random_range(1..=3));
        let fixed = [1, 5][self.rng.random_range(0..2)];
        let fixed = if self.rng.random_range(0..10) == 0 {
            fixed
        } else {
            0
        };
        for _ in 0..fixed {
            let number = 20_000 + self.rng.random_range(0..12);
            ports.push(DeclaredPort {
                host_ip: ["", "0.0.0.0", "10.0.0.1"][self.rng.random_range(0..3)].to_owned(),
                ..port(80, "TCP", number)
            });
        }
        let spec = PodSpec {
            containers: vec![Container {
                ports,
                ..Container::default()
            }],
            ..PodSpec::default()
        };
        // one in eight asks for nothing
        let annotation = (self.rng.random_range(0..8) > 0).then(String::new);
        let facts = PodFacts {
            pod: PodRef {
                namespace: if name.ends_with('0') { "other" } else { "ns" }.into(),
                name: name.clone(),
                uid: uid.clone(),
            },
            // one in eight is a static pod
            runtime_uid: (self.rng.random_range(0..8) == 0).then(|| {
                let hash = format!("hash-{uid}");
                hash.parse().expect("a uid")
            }),
            spec,
            version: String::new(),
            record: Record {
                annotation,
                ..Record::default()
            },
            annotation_manager: None,
            pod_ips: Vec::new(),
            host_ips: Vec::new(),
            started: false,
            finished: false,
            deleting: false,
        };
        if self.rng.random_range(0..12) == 0 {
            self.unsupported.insert(uid.clone());
        }
        self.record(|| format!("create {uid} {name}"));
        self.names.insert(uid.clone(), name);
        let word = facts.record.annotation.clone();
        self.last_word.insert(uid.clone(), word);
        self.pods.insert(uid.clone(), facts);
        self.show(&uid);
    }

    /// The pod has changed: it gets a new version, and the watch will show it.
    pub(crate) fn show(&mut self, uid: &PodUid) {
        if let Some(facts) = self.pods.get_mut(uid) {
            self.version += 1;
            facts.version = self.version.to_string();
            let update = Update::Applied(Box::new(facts.clone()));
            self.announce(update);
        }
    }

    fn announce(&mut self, update: Update) {
        self.upgrade.announce(&update);
        self.watch.push_back(update);
    }

    /// The kubelet reports the address of the pod's sandbox to the API server, late.
    pub(crate) fn report_address(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        let Some(ips) = self.living.get(&uid).map(|sandbox| sandbox.ips.clone()) else {
            return;
        };
        let ips = self.named_by_status(&ips);
        if let Some(facts) = self.pods.get_mut(&uid) {
            facts.pod_ips = ips;
            facts.host_ips = vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))];
            if facts.pod_ips.iter().any(IpAddr::is_ipv6) {
                facts.host_ips.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
            }
            self.show(&uid);
            self.record(|| format!("report address of {uid}"));
        }
    }

    /// Of each family the kubelet names one address.
    pub(crate) fn named_by_status(&mut self, ips: &[IpAddr]) -> Vec<IpAddr> {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = ips.iter().partition(|ip| ip.is_ipv4());
        let mut one = |of: Vec<IpAddr>| {
            let at = self.rng.random_range(0..of.len().max(1));
            of.get(at).copied()
        };
        let named = [one(v4), one(v6)];
        named.into_iter().flatten().collect()
    }

    /// A pod finishes or is deleted; most of the time its sandbox is gone by then.
    pub(crate) fn end_pod(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        if self.rng.random_range(0..4) > 0 {
            self.stop_sandbox_of(&uid);
        }
        self.record(|| format!("end {uid}"));
        let finalizer = self.rng.random_range(0..4) == 0;
        if finalizer || self.rng.random_range(0..3) == 0 {
            self.seen.finalizers += u64::from(finalizer);
            if let Some(facts) = self.pods.get_mut(&uid) {
                facts.finished = true;
                facts.deleting |= finalizer;
                self.show(&uid);
            }
        } else {
            self.pods.remove(&uid);
            self.announce(Update::Gone(uid));
        }
    }

    pub(crate) fn rewrite_annotation(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        let value = match self.rng.random_range(0..8) {
            0..2 => None,
            2..4 => {
                let number = 9040 + self.rng.random_range(0..6);
                let protocol = ["TCP", "UDP"][self.rng.random_range(0..2)];
                Some(format!(
                    r#"[{{"containerPort":{number},"protocol":"{protocol}"}}]"#
                ))
            }
            4..6 => Some(TYPO.to_owned()),
            6 => Some(format!(
                r#"[{{"containerPort":9040,"hostIP":"{MOVED_HOST}"}}]"#
            )),
            _ => Some(String::new()),
        };
        self.annotate(&uid, value);
    }

    /// A user's last word.
    pub(crate) fn annotate(&mut self, uid: &PodUid, value: Option<String>) {
        self.record(|| format!("annotate {uid} {value:?}"));
        if let Some(facts) = self.pods.get_mut(uid) {
            facts.record.annotation.clone_from(&value);
            self.last_word.insert(uid.clone(), value);
            self.show(uid);
        }
    }

    /// A user writes a result: with a port of another pod, out of range, or of no pod.
    pub(crate) fn forge(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        let port = self.rng.random_range(19_995..20_015);
        let Some(facts) = self.pods.get_mut(&uid) else {
            return;
        };
        facts.record.annotation = Some(format!(
            r#"[{{"hostPort":{port},"containerPort":9040,"protocol":"TCP","podName":"{}","podIP":"10.9.9.9"}}]"#,
            facts.pod.name
        ));
        self.forged.insert(uid.clone());
        self.last_word.remove(&uid);
        self.show(&uid);
        self.record(|| format!("forge {uid} {port}"));
    }

    pub(crate) fn deliver(&mut self) {
        match self.watch.pop_front() {
            Some(Update::Applied(facts)) => {
                self.reference.shown(self.now, &facts);
                self.state.pod_applied(self.now, *facts);
            }
            Some(Update::Gone(uid)) => {
                self.reference.gone(&uid);
                self.state.pod_gone(self.now, &uid);
            }
            Some(Update::Listed(living)) => {
                self.restoring = false;
                self.reference.relisted(&living);
                self.state.relisted(self.now, &living);
            }
            None => {}
        }
    }

    /// A list shows the present, one pod at a time; what the watch still had to show is lost.
    pub(crate) fn list(&mut self) {
        self.watch = self.snapshot();
    }

    pub(crate) fn snapshot(&self) -> VecDeque<Update> {
        let pods = self.pods.values().cloned();
        let pods = pods.map(|facts| Update::Applied(Box::new(facts)));
        let living = self.pods.keys().cloned().collect();
        pods.chain([Update::Listed(living)]).collect()
    }

    /// The watch breaks, and the list arrives at once.
    pub(crate) fn relist(&mut self) {
        self.record(|| "relist".to_owned());
        self.list();
        self.deliver_all();
    }

    pub(crate) fn deliver_all(&mut self) {
        while !self.watch.is_empty() {
            self.deliver();
            self.collect();
        }
    }
}
