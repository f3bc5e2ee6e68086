//! The model: what kernel, keeper and API server would do, and what must always hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use portmapping_enforcer_core::{
    Action, Config, NodeState, Plan, PodFacts, PortKey, Publication, Record, Recovered,
};
use portmapping_shared::pod::{Container, DeclaredPort};
use portmapping_shared::{HostPort, Mapping, PodRef, PodSpec, PodUid, PortSet, annotation};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const RANGE: &str = "20000-20011";
const COOLDOWN: Duration = Duration::from_secs(30);
const NAMES: usize = 5;
const ADDRESSES: u8 = 8;

/// A call of the enforcer that is on its way.
enum Call {
    Hold(Vec<PortKey>),
    Release(Vec<PortKey>),
    Program(Plan),
    Publish(Box<Publication>),
    Observe,
}

pub(crate) struct World {
    rng: StdRng,
    now: Duration,
    state: NodeState,
    calls: Vec<Call>,
    /// The API server's pods, and what the watch has not delivered yet.
    pods: BTreeMap<PodUid, PodFacts>,
    watch: VecDeque<Result<PodFacts, PodUid>>,
    kernel: BTreeSet<Mapping>,
    intact: bool,
    /// Pods whose rules this kernel does not take.
    poison: BTreeSet<PodUid>,
    keeper: BTreeSet<PortKey>,
    strangers: BTreeSet<PortKey>,
    /// Who was last mapped at a port, and since when it is not any more.
    last: BTreeMap<PortKey, (PodUid, Duration)>,
    next_uid: u32,
    broken: Option<String>,
    story: VecDeque<String>,
    calm: bool,
    /// Holds are being taken up again by a new keeper.
    keeper_lost: bool,
    pub(crate) mapped: u64,
    pub(crate) restarts: u64,
}

fn config() -> Config {
    Config {
        range: RANGE.parse().expect("a range"),
        excluded: [20_003]
            .into_iter()
            .filter_map(HostPort::new)
            .collect::<PortSet>(),
        cooldown: COOLDOWN,
        quarantine: Duration::from_mins(1),
        max_ports: 64,
        ipv6: true,
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Duration::ZERO,
            state: NodeState::new(config(), seed),
            calls: Vec::new(),
            pods: BTreeMap::new(),
            watch: VecDeque::new(),
            kernel: BTreeSet::new(),
            intact: false,
            poison: BTreeSet::new(),
            keeper: BTreeSet::new(),
            strangers: BTreeSet::new(),
            last: BTreeMap::new(),
            next_uid: 0,
            broken: None,
            story: VecDeque::new(),
            calm: false,
            keeper_lost: false,
            mapped: 0,
            restarts: 0,
        }
    }

    pub(crate) fn story(&self) -> String {
        let lines: Vec<&str> = self.story.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    fn tell(&mut self, line: &str) {
        if self.story.len() == 80 {
            self.story.pop_front();
        }
        self.story
            .push_back(format!("{:>6.1}s {line}", self.now.as_secs_f32()));
    }

    pub(crate) fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..8 => self.create_pod(),
            8..18 => self.address_pod(),
            18..25 => self.end_pod(),
            25..30 => self.rewrite_annotation(),
            30..55 => self.deliver(),
            55..85 => self.answer(),
            85..87 => self.relist(),
            87..88 => self.restart(),
            88..89 => self.damage(),
            89..91 => self.calls.push(Call::Observe),
            91..93 => self.strange(),
            93..94 => self.lose_keeper(),
            _ => self.pass_time(),
        }
        self.collect();
    }

    fn collect(&mut self) {
        for action in self.state.take_actions() {
            let call = match action {
                Action::Hold(keys) => Call::Hold(keys),
                Action::Release(keys) => Call::Release(keys),
                Action::Program(plan) => Call::Program(plan),
                Action::Publish(publication) => Call::Publish(Box::new(publication)),
                Action::Event(event) => {
                    self.tell(&format!("event {:?} {}", event.kind, event.pod));
                    continue;
                }
            };
            self.calls.push(call);
        }
    }

    fn random_pod(&mut self) -> Option<PodUid> {
        let count = self.pods.len();
        (count > 0)
            .then(|| self.rng.random_range(0..count))
            .and_then(|n| self.pods.keys().nth(n).cloned())
    }

    fn create_pod(&mut self) {
        let name = format!("pod-{}", self.rng.random_range(0..NAMES));
        if self.pods.values().any(|facts| facts.pod.name == name) {
            return;
        }
        let uid: PodUid = format!("uid-{}", self.next_uid).parse().expect("a uid");
        self.next_uid += 1;
        let port = |number, protocol: &str, host_port| DeclaredPort {
            container_port: number,
            protocol: protocol.to_owned(),
            host_port,
            ..DeclaredPort::default()
        };
        let mut ports = vec![port(9040, "TCP", 0), port(53, "UDP", 0), port(54, "UDP", 0)];
        ports.truncate(self.rng.random_range(1..=3));
        if self.rng.random_range(0..10) == 0 {
            ports.push(port(80, "TCP", 20_005));
        }
        let spec = PodSpec {
            containers: vec![Container {
                ports,
                ..Container::default()
            }],
            ..PodSpec::default()
        };
        let record = Record {
            annotation: Some(String::new()),
            ..Record::default()
        };
        let facts = PodFacts {
            pod: PodRef {
                namespace: "ns".into(),
                name,
                uid: uid.clone(),
            },
            spec,
            record,
            pod_ips: Vec::new(),
            host_ips: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))],
            finished: false,
            deleting: false,
        };
        if self.rng.random_range(0..12) == 0 {
            self.poison.insert(uid.clone());
        }
        self.tell(&format!("create {uid}"));
        self.watch.push_back(Ok(facts.clone()));
        self.pods.insert(uid, facts);
    }

    /// The pod gets an address that no living pod has, or another one (a sandbox made anew).
    fn address_pod(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        let ip = IpAddr::V4(Ipv4Addr::new(
            10,
            244,
            0,
            self.rng.random_range(0..ADDRESSES),
        ));
        let used = self
            .pods
            .values()
            .any(|facts| facts.pod_ips.contains(&ip) && !facts.finished);
        if let Some(facts) = self
            .pods
            .get_mut(&uid)
            .filter(|facts| !used && !facts.finished)
        {
            facts.pod_ips = vec![ip];
            self.watch.push_back(Ok(facts.clone()));
            self.tell(&format!("address {uid} {ip}"));
        }
    }

    fn end_pod(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        self.tell(&format!("end {uid}"));
        if self.rng.random_range(0..3) == 0 {
            if let Some(facts) = self.pods.get_mut(&uid) {
                facts.finished = true;
                self.watch.push_back(Ok(facts.clone()));
            }
        } else {
            self.pods.remove(&uid);
            self.watch.push_back(Err(uid));
        }
    }

    fn rewrite_annotation(&mut self) {
        let Some(uid) = self.random_pod() else { return };
        let value = match self.rng.random_range(0..4) {
            0 => None,
            1 => Some(r#"[{"containerPort":9040}]"#.to_owned()),
            2 => Some("nonsense".to_owned()),
            _ => Some(String::new()),
        };
        self.tell(&format!("annotate {uid} {value:?}"));
        if let Some(facts) = self.pods.get_mut(&uid) {
            facts.record.annotation = value;
            self.watch.push_back(Ok(facts.clone()));
        }
    }

    fn deliver(&mut self) {
        match self.watch.pop_front() {
            Some(Ok(facts)) => self.state.pod_applied(self.now, facts),
            Some(Err(uid)) => self.state.pod_gone(self.now, &uid),
            None => {}
        }
    }

    /// The watch breaks: what was under way is lost, a list brings the present.
    fn relist(&mut self) {
        self.tell("relist");
        self.watch.clear();
        for facts in self.pods.values() {
            self.state.pod_applied(self.now, facts.clone());
        }
        self.state
            .relisted(self.now, &self.pods.keys().cloned().collect());
    }

    fn restart(&mut self) {
        self.tell("restart");
        self.restarts += 1;
        // a request under way may or may not be carried out
        let (drop, seed) = (self.rng.random_range(0..2) == 0, self.rng.random());
        if !drop {
            while !self.calls.is_empty() {
                self.answer();
            }
        }
        self.calls.clear();
        // keeper and enforcer dead together: nobody is left who knows what was cooling
        let keeper = &self.keeper;
        self.last.retain(|key, _| keeper.contains(key));
        let found = Recovered {
            mappings: self.kernel.clone(),
            intact: self.intact,
            held: self.keeper.clone(),
            ..Recovered::default()
        };
        self.state = NodeState::recover(config(), seed, self.now, found);
        self.collect();
        if self.rng.random_range(0..2) == 0 {
            self.relist();
        } else {
            self.watch.clear();
            self.watch.extend(self.pods.values().cloned().map(Ok));
        }
    }

    /// Somebody flushes some or all of our rules.
    fn damage(&mut self) {
        self.tell("damage");
        if self.rng.random_range(0..2) == 0 {
            self.kernel.clear();
            self.intact = false;
        } else {
            self.kernel.pop_first();
        }
    }

    /// Another process takes a port that nobody holds, or ends.
    fn strange(&mut self) {
        let port = HostPort::new(self.rng.random_range(20_000..20_012)).expect("a port");
        let key = (portmapping_shared::Protocol::Tcp, port);
        if !self.strangers.remove(&key) && !self.keeper.contains(&key) {
            self.strangers.insert(key);
        }
    }

    /// The keeper dies; its successor holds nothing and is asked for its list.
    fn lose_keeper(&mut self) {
        self.tell("keeper lost");
        self.keeper.clear();
        self.keeper_lost = true;
        self.calls
            .retain(|call| !matches!(call, Call::Hold(_) | Call::Release(_)));
        self.state.keeper_listed(self.now, &BTreeSet::new());
    }

    fn pass_time(&mut self) {
        let step = Duration::from_millis(self.rng.random_range(1..5000));
        self.now += step;
        self.tick();
    }

    /// A deadline that a tick does not move would keep the loop from ever sleeping.
    fn tick(&mut self) {
        self.state.tick(self.now);
        if let Some(deadline) = self.state.next_deadline().filter(|at| *at <= self.now) {
            self.broken = Some(format!("the deadline {deadline:?} has passed and stays"));
        }
    }

    /// One call, any of them, gets its answer; now and then a failure.
    fn answer(&mut self) {
        if self.calls.is_empty() {
            return;
        }
        let call = self
            .calls
            .remove(self.rng.random_range(0..self.calls.len()));
        let fails = !self.calm && self.rng.random_range(0..8) == 0;
        match call {
            Call::Hold(keys) | Call::Release(keys) if fails => {
                self.state.keeper_failed(self.now, &keys);
            }
            Call::Hold(keys) => self.hold(&keys),
            Call::Release(keys) => {
                for key in &keys {
                    self.keeper.remove(key);
                }
                self.state.released(self.now, &keys);
            }
            Call::Program(plan) if fails => {
                self.state
                    .programmed(self.now, &plan, Err("lock held".to_owned()));
            }
            Call::Program(plan) => self.program(&plan),
            Call::Publish(publication) => self.publish(&publication, fails),
            Call::Observe => self
                .state
                .observed(self.now, self.kernel.clone(), self.intact),
        }
        self.collect();
    }

    fn hold(&mut self, keys: &[PortKey]) {
        let mut outcomes = Vec::new();
        for key in keys {
            if self.strangers.contains(key) {
                outcomes.push((*key, Err("Address already in use".to_owned())));
            } else {
                self.keeper.insert(*key);
                outcomes.push((*key, Ok(())));
            }
        }
        self.state.held(self.now, outcomes);
    }

    fn program(&mut self, plan: &Plan) {
        if plan
            .to_create
            .iter()
            .any(|mapping| self.poison.contains(&mapping.owner))
        {
            let refusal = Err("no such protocol".to_owned());
            return self.state.programmed(self.now, plan, refusal);
        }
        for mapping in &plan.to_remove {
            if self.kernel.remove(mapping) {
                let key = (mapping.protocol, mapping.host_port);
                self.last.insert(key, (mapping.owner.clone(), self.now));
            }
        }
        for mapping in &plan.to_create {
            self.judge_new(mapping);
            self.kernel.insert(mapping.clone());
        }
        self.intact = true;
        self.state.programmed(self.now, plan, Ok(()));
    }

    /// I1: nobody new before the cool-down is over. I7: no rule without a hold.
    fn judge_new(&mut self, mapping: &Mapping) {
        let key = (mapping.protocol, mapping.host_port);
        let rested = self
            .last
            .get(&key)
            .is_none_or(|(owner, since)| *owner == mapping.owner || self.now >= *since + COOLDOWN);
        if !rested {
            self.broken = Some(format!("I1: {mapping} before its cool-down was over"));
        }
        if !self.keeper.contains(&key) && !self.calm && !self.keeper_lost {
            self.broken = Some(format!("I7: {mapping} without a hold"));
        }
    }

    fn publish(&mut self, publication: &Publication, fails: bool) {
        let uid = &publication.pod.uid;
        let lost_answer = fails && self.rng.random_range(0..2) == 0;
        let known = self.pods.contains_key(uid);
        if known && (!fails || lost_answer) {
            self.judge_publication(publication);
            if let Some(facts) = self.pods.get_mut(uid) {
                facts.record = publication.wanted.clone();
                self.watch.push_back(Ok(facts.clone()));
            }
        }
        let line = format!("publish {uid} {:?}", publication.wanted.condition);
        self.tell(&line);
        self.state.published(self.now, uid, known && !fails);
    }

    /// I2: True only once every port it names is in the kernel, to an address of this pod.
    fn judge_publication(&mut self, publication: &Publication) {
        let wanted = &publication.wanted;
        if !wanted
            .condition
            .as_ref()
            .is_some_and(|condition| condition.status)
        {
            return;
        }
        self.mapped += 1;
        let value = wanted.annotation.as_deref().unwrap_or_default();
        let Some(entries) = annotation::decode(value) else {
            self.broken = Some(format!("I2: True beside {value:?}"));
            return;
        };
        let static_port = |port: u16| port == 20_005 || port == 80;
        for entry in entries.iter().filter(|entry| !static_port(entry.host_port)) {
            let ruled = self.kernel.iter().any(|mapping| {
                mapping.owner == publication.pod.uid
                    && mapping.host_port.get() == entry.host_port
                    && mapping.protocol == entry.protocol
                    && mapping.pod_ip.to_string() == entry.pod_ip
            });
            // rules may have been flushed since we last looked: that is repaired, not foreseen
            if !ruled && self.intact && !self.kernel.is_empty() && !self.calls_observe() {
                let told = self
                    .story
                    .iter()
                    .any(|line| line.contains("damage") || line.contains("address"));
                if !told {
                    self.broken = Some(format!("I2: {} published without a rule", entry.host_port));
                }
            }
        }
    }

    fn calls_observe(&self) -> bool {
        self.calls.iter().any(|call| matches!(call, Call::Observe))
    }

    /// What must hold after every step.
    pub(crate) fn check(&self) -> Result<(), String> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        let mut owners: BTreeMap<PortKey, &PodUid> = BTreeMap::new();
        for mapping in &self.kernel {
            let key = (mapping.protocol, mapping.host_port);
            let owner = owners.entry(key).or_insert(&mapping.owner);
            if **owner != mapping.owner {
                return Err(format!("I1: {mapping}, and {owner} has that port, too"));
            }
            if mapping.host_port.get() == 20_003 {
                return Err(format!("excluded port given away: {mapping}"));
            }
        }
        Ok(())
    }

    /// I8: left in peace, everything ends where it should.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.calm = true;
        self.strangers.clear();
        self.relist();
        for _ in 0..400 {
            self.collect();
            while !self.calls.is_empty() {
                self.answer();
            }
            while !self.watch.is_empty() {
                self.deliver();
                self.collect();
            }
            self.now += Duration::from_secs(1);
            self.calls.push(Call::Observe);
            self.tick();
        }
        self.check()?;
        for facts in self.pods.values() {
            let annotated = facts.record.annotation.is_some() && !facts.finished;
            let condition = facts.record.condition.as_ref();
            let rules = self
                .kernel
                .iter()
                .filter(|mapping| mapping.owner == facts.pod.uid)
                .count();
            let uid = &facts.pod.uid;
            let told = condition.map(|c| (c.status, c.reason.as_str()));
            match (annotated, facts.pod_ips.is_empty(), told) {
                (true, false, Some((true, _))) if rules > 0 => {}
                (true, _, Some((false, "NoFreePort" | "InvalidRequest"))) => {}
                (true, false, Some((false, "DataplaneError"))) if self.poison.contains(uid) => {}
                (true, true, _) | (false, _, None | Some((false, _))) if rules == 0 => {}
                _ => {
                    return Err(format!(
                        "I8: {uid} ended as {told:?} with {rules} rules: {facts:?}"
                    ));
                }
            }
        }
        let dead = |mapping: &&Mapping| !self.pods.contains_key(&mapping.owner);
        match self.kernel.iter().find(dead) {
            Some(mapping) => Err(format!("I3: {mapping} outlives its pod")),
            None => Ok(()),
        }
    }
}
