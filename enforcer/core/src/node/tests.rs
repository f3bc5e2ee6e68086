//! The state machine step by step; the tests give every answer.

use std::net::IpAddr;

use portmapping_shared::pod::{Container, DeclaredPort, ReadinessGate};
use portmapping_shared::{Plan, PodRef, PodSpec, PortSet, annotation};

use super::*;
use crate::action::{Condition, Publication, PublishOutcome, Record, RuleError};
use crate::sandbox::{AddressSource, Sandbox, SandboxId};

mod addresses;
mod churn;
mod closed;
mod contest;
mod forgery;
mod host_addresses;
mod kernel;
mod life;
mod ports;
mod recovery;
mod replies;
mod scale;
mod static_pods;
mod static_ports;
mod truth;
mod uninstalled;

const NOW: Duration = Duration::from_secs(1000);

fn config(range: &str) -> Config {
    Config {
        range: range.parse().unwrap(),
        excluded: PortSet::default(),
        cooldown: Duration::from_secs(30),
        quarantine: Duration::from_mins(1),
        max_ports: 64,
        max_cooling: 4,
        // no limit
        namespace_share: 1000,
        ipv6: true,
        epoch: Duration::ZERO,
    }
}

fn facts(name: &str, ip: Option<&str>) -> PodFacts {
    let ports = vec![
        DeclaredPort {
            container_port: 9040,
            ..DeclaredPort::default()
        },
        DeclaredPort {
            container_port: 53,
            protocol: "UDP".into(),
            ..DeclaredPort::default()
        },
    ];
    PodFacts {
        pod: PodRef {
            namespace: "ns".into(),
            name: name.into(),
            uid: format!("uid-{name}").parse().unwrap(),
        },
        runtime_uid: None,
        spec: PodSpec {
            containers: vec![Container {
                ports,
                ..Container::default()
            }],
            ..PodSpec::default()
        },
        version: String::new(),
        record: Record {
            annotation: Some(String::new()),
            ..Record::default()
        },
        annotation_manager: None,
        pod_ips: ip.into_iter().map(|ip| ip.parse().unwrap()).collect(),
        host_ips: vec!["10.0.0.11".parse().unwrap()],
        started: true,
        finished: false,
        deleting: false,
    }
}

/// A node whose keeper and kernel carry out what they are asked.
struct Node {
    state: NodeState,
    now: Duration,
    emitted: Vec<(EventKind, String)>,
    written: Vec<Publication>,
    /// The pods of the API server; it shows each write at once.
    pods: BTreeMap<PodUid, PodFacts>,
    /// Versions given so far.
    versions: u32,
    /// Reads of pods that were asked for; the tests answer them.
    reads: Vec<(PodRef, Duration)>,
    echoes: bool,
}

impl Node {
    fn new(range: &str) -> Self {
        let mut state = NodeState::new(config(range), 1);
        state.listed = true;
        Self {
            state,
            now: NOW,
            emitted: Vec::new(),
            written: Vec::new(),
            pods: BTreeMap::new(),
            versions: 0,
            reads: Vec::new(),
            echoes: true,
        }
    }

    fn applied(&mut self, facts: PodFacts) -> &mut Self {
        let facts = self.changed(facts);
        self.state.pod_applied(self.now, facts);
        self
    }

    /// All pods of the API server have been shown.
    fn listed(&mut self) -> &mut Self {
        let living = self.pods.keys().cloned().collect();
        self.state.relisted(self.now, &living);
        self
    }

    /// The API server's pod changes; the watch does not show it yet.
    fn changed(&mut self, mut facts: PodFacts) -> PodFacts {
        self.versions += 1;
        facts.version = self.versions.to_string();
        self.pods.insert(facts.pod.uid.clone(), facts.clone());
        facts
    }

    /// The API server takes a publication that was decided for the newest version.
    fn publish(&mut self, publication: Publication) {
        let Publication {
            pod,
            version,
            wanted,
            ..
        } = publication.clone();
        let known = self.pods.get(&pod.uid).cloned();
        let Some(facts) = known.filter(|facts| facts.version == version) else {
            let conflict = PublishOutcome::Conflict;
            return self.state.published(self.now, &pod.uid, conflict);
        };
        self.written.push(publication);
        let facts = self.changed(PodFacts {
            record: wanted,
            ..facts
        });
        let version = facts.version.clone();
        let outcome = PublishOutcome::Written { version };
        self.state.published(self.now, &pod.uid, outcome);
        if self.echoes {
            self.state.pod_applied(self.now, facts);
        }
    }

    /// Answers everything until nothing more is asked.
    fn settle(&mut self) -> &mut Self {
        self.settle_with(|_| Ok(()), |_| Ok(()))
    }

    fn settle_with(
        &mut self,
        hold: impl Fn(PortKey) -> Result<(), String>,
        program: impl Fn(&Plan) -> Result<(), String>,
    ) -> &mut Self {
        loop {
            let actions = self.state.take_actions();
            if actions.is_empty() {
                return self;
            }
            for action in actions {
                match action {
                    Action::Hold(keys) => {
                        let outcomes = keys.into_iter().map(|key| (key, hold(key))).collect();
                        self.state.held(self.now, outcomes);
                    }
                    Action::Release(keys) => self.state.released(self.now, &keys),
                    Action::Program(plan) => {
                        let outcome = program(&plan);
                        let outcome = outcome.map_err(|message| RuleError {
                            not_permitted: message.contains("not permitted"),
                            message,
                        });
                        self.state.programmed(self.now, &plan, outcome);
                        assert_eq!(self.state.audit(), Ok(()));
                    }
                    Action::Publish(publication) => self.publish(publication),
                    Action::ReadPod { pod, asked } => self.reads.push((pod, asked)),
                    Action::Event(event) => self.emitted.push((event.kind, event.note)),
                }
            }
        }
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self.state.tick(self.now);
        self.settle()
    }

    fn last(&self) -> &Record {
        &self.written.last().unwrap().wanted
    }

    fn events(&self) -> Vec<EventKind> {
        self.emitted.iter().map(|(kind, _)| *kind).collect()
    }

    fn host_ports(&self, name: &str) -> Vec<u16> {
        let status = self.state.status();
        let pod = status
            .pods
            .iter()
            .find(|pod| pod.uid.as_str() == format!("uid-{name}"));
        let mut ports: Vec<u16> = pod
            .into_iter()
            .flat_map(|pod| &pod.lease)
            .map(|lease| lease.host_port.get())
            .collect();
        ports.sort_unstable();
        ports
    }
}

/// The pod as the API shows it after our last write.
fn echoed(node: &Node, mut facts: PodFacts) -> PodFacts {
    facts.record = node.last().clone();
    facts
}

/// A sandbox of the named pod, written at this second.
fn sandbox(name: &str, id: &str, ip: &str, written: u64) -> Sandbox {
    Sandbox {
        uid: format!("uid-{name}").parse().unwrap(),
        id: id.parse().unwrap(),
        ips: vec![ip.parse().unwrap()],
        written: Duration::from_secs(written),
    }
}

impl Node {
    fn up(&mut self, sandbox: Sandbox) -> &mut Self {
        self.state.sandbox_up(self.now, sandbox);
        self.settle()
    }

    fn down(&mut self, id: &str) -> &mut Self {
        self.state.sandbox_down(self.now, &id.parse().unwrap());
        self.settle()
    }

    fn gone(&mut self, name: &str) -> &mut Self {
        let uid: PodUid = format!("uid-{name}").parse().unwrap();
        self.pods.remove(&uid);
        self.state.pod_gone(self.now, &uid);
        self.settle()
    }

    /// The addresses to which the pod's rules lead.
    fn leads_to(&self, name: &str) -> BTreeSet<String> {
        let desired = self.state.desired();
        let own = desired
            .iter()
            .filter(|m| m.owner.as_str() == format!("uid-{name}"));
        own.map(|mapping| mapping.pod_ip.to_string()).collect()
    }

    /// The pod as the API shows it now.
    fn shown(&self, name: &str) -> PodFacts {
        self.pods[&format!("uid-{name}").parse().unwrap()].clone()
    }

    fn notes(&self, wanted: EventKind) -> Vec<&str> {
        let emitted = self.emitted.iter().filter(|(kind, _)| *kind == wanted);
        emitted.map(|(_, note)| note.as_str()).collect()
    }
}
