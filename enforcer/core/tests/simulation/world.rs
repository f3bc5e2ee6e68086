//! The model: everything around the state machine, and the random steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use portmapping_enforcer_core::{
    Action, Config, EventKind, NodeState, PodFacts, Publication, Sandbox, SandboxId, SandboxUpdate,
};
use portmapping_shared::{HostPort, Mapping, Plan, PodRef, PodUid, PortKey, PortSet, Protocol};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cluster::Update;
use crate::faults::Backup;
use crate::history::LastUse;
use crate::reference::Reference;
use crate::seen::Seen;
use crate::upgrades::Upgrade;

const RANGE: &str = "20000-20011";
pub(crate) const COOLDOWN: Duration = Duration::from_secs(30);
/// The node's clock when a walk begins; leftovers are older.
pub(crate) const EPOCH: Duration = Duration::from_hours(1);

/// A call of the enforcer that is on its way.
pub(crate) enum Call {
    Hold(Vec<PortKey>),
    Release(Vec<PortKey>),
    Program(Plan),
    Publish(Box<Publication>),
    ReadPod(PodRef, Duration),
    Observe,
}

#[expect(clippy::struct_excessive_bools, reason = "these are independent facts")]
pub(crate) struct World {
    pub(crate) rng: StdRng,
    pub(crate) now: Duration,
    pub(crate) state: NodeState,
    pub(crate) calls: Vec<Call>,
    /// The events that the state machine got so far.
    pub(crate) reference: Reference,
    /// The API server's pods, and what the watch has not delivered yet.
    pub(crate) pods: BTreeMap<PodUid, PodFacts>,
    pub(crate) watch: VecDeque<Update>,
    /// Sandboxes that exist, the results on disk, and the updates about them under way.
    pub(crate) living: BTreeMap<PodUid, Sandbox>,
    pub(crate) files: BTreeMap<SandboxId, Sandbox>,
    pub(crate) updates: Vec<SandboxUpdate>,
    /// Whether this runtime writes results.
    pub(crate) writes_results: bool,
    /// Whether pods have IPv4 and IPv6 addresses.
    pub(crate) families: [bool; 2],
    /// Whether pods have two addresses of each family.
    pub(crate) two_addresses: bool,
    /// A backup of the API server's data.
    pub(crate) backup: Backup,
    /// An upgrade that is under way or was the last one.
    pub(crate) upgrade: Upgrade,
    /// The last resourceVersion.
    pub(crate) version: u32,
    pub(crate) kernel: BTreeSet<Mapping>,
    pub(crate) intact: bool,
    /// Rules were damaged since they were last read back.
    pub(crate) damaged: bool,
    /// When a read was asked for that is not answered.
    pub(crate) read_asked: Option<Duration>,
    /// Pods whose rules this kernel refuses.
    pub(crate) unsupported: BTreeSet<PodUid>,
    pub(crate) keeper: BTreeSet<PortKey>,
    /// Ports that an ended keeper held, not held again yet.
    pub(crate) unheld: BTreeSet<PortKey>,
    pub(crate) other_processes: BTreeSet<PortKey>,
    /// The pod that was last mapped at a port, also if its rules were damaged.
    pub(crate) last: BTreeMap<PortKey, LastUse>,
    /// Rules that should be gone, and since when, while nothing keeps them in the kernel.
    pub(crate) stale: BTreeMap<Mapping, Duration>,
    /// The API server's data is that of a backup, and the watch has not listed it yet.
    pub(crate) restoring: bool,
    pub(crate) names: BTreeMap<PodUid, String>,
    /// What a user wrote last into the annotation of each pod, if that was no forged result.
    pub(crate) last_word: BTreeMap<PodUid, Option<String>>,
    /// Pods whose result a user forged.
    pub(crate) forged: BTreeSet<PodUid>,
    /// The ports that each pod had before the node's last reboot, and did not get again yet.
    pub(crate) previous: BTreeMap<PortKey, PodFacts>,
    /// The ports that results of the last backup name, or results that a successor's watch shows late: after
    /// a start no one else knows who had them.
    pub(crate) old_results: BTreeSet<(PodUid, PortKey)>,
    /// Pods of which the state machine knows that they are not mapped, and since when.
    pub(crate) unmapped: BTreeMap<PodUid, Duration>,
    pub(crate) next: u32,
    pub(crate) broken: Option<String>,
    log: VecDeque<String>,
    pub(crate) no_faults: bool,
    pub(crate) seen: Seen,
}

pub(crate) fn config() -> Config {
    Config {
        range: RANGE.parse().expect("a range"),
        excluded: [20_003]
            .into_iter()
            .filter_map(HostPort::new)
            .collect::<PortSet>(),
        cooldown: COOLDOWN,
        quarantine: Duration::from_mins(1),
        max_ports: 64,
        max_cooling: 2,
        // four ports
        namespace_share: 34,
        ipv6: true,
        epoch: EPOCH,
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let writes_results = rng.random_range(0..4) > 0;
        let families = match rng.random_range(0..6) {
            0 => [false, true],
            1 | 2 => [true, true],
            _ => [true, false],
        };
        let two_addresses = rng.random_range(0..4) == 0;
        let mut state = NodeState::new(config(), seed);
        state.relisted(Duration::ZERO, &BTreeSet::new());
        Self {
            rng,
            now: Duration::ZERO,
            state,
            calls: Vec::new(),
            reference: Reference::default(),
            pods: BTreeMap::new(),
            watch: VecDeque::new(),
            living: BTreeMap::new(),
            files: BTreeMap::new(),
            updates: Vec::new(),
            writes_results,
            families,
            two_addresses,
            backup: Backup::default(),
            upgrade: Upgrade::default(),
            version: 0,
            kernel: BTreeSet::new(),
            intact: false,
            damaged: false,
            read_asked: None,
            unsupported: BTreeSet::new(),
            keeper: BTreeSet::new(),
            unheld: BTreeSet::new(),
            other_processes: BTreeSet::new(),
            last: BTreeMap::new(),
            stale: BTreeMap::new(),
            restoring: false,
            names: BTreeMap::new(),
            last_word: BTreeMap::new(),
            forged: BTreeSet::new(),
            previous: BTreeMap::new(),
            old_results: BTreeSet::new(),
            unmapped: BTreeMap::new(),
            next: 0,
            broken: None,
            log: VecDeque::new(),
            no_faults: false,
            seen: Seen::default(),
        }
    }

    pub(crate) fn log(&self) -> String {
        let lines: Vec<&str> = self.log.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    pub(crate) fn record(&mut self, line: impl FnOnce() -> String) {
        if self.log.len() == 120 {
            self.log.pop_front();
        }
        let line = line();
        self.log
            .push_back(format!("{:>6.1}s {line}", self.now.as_secs_f32()));
    }

    pub(crate) fn step(&mut self) {
        match self.rng.random_range(0..1000) {
            0..50 => self.create_pod(),
            50..100 => self.start_sandbox(),
            100..112 => self.stop_sandbox(),
            112..160 => self.report_address(),
            160..190 => self.end_pod(),
            190..205 => self.rewrite_annotation(),
            205..212 => self.forge(),
            212..420 => self.deliver(),
            420..500 => self.deliver_result(),
            500..860 => self.answer(),
            860..870 => self.relist(),
            870..876 => self.restart(),
            876..877 => self.reboot(),
            877..885 => self.damage(),
            885..905 => self.ask_read(),
            905..920 => self.use_port(),
            920..925 => self.lose_keeper(),
            925..930 => self.overflow(),
            930..938 => self.repeat_result(),
            938..941 => self.wipe_results(),
            941..945 => self.write_unknown_result(),
            945..947 => self.change_host_addresses(),
            947..949 => self.back_up(),
            949..950 => self.restore(),
            950..952 => self.contest(),
            952..954 => self.churn(),
            954..964 => self.upgrade(),
            964..966 => self.change_forward(),
            _ => self.pass_time(),
        }
        self.collect();
    }

    /// Takes the state machine's actions, and checks each.
    pub(crate) fn collect(&mut self) {
        for action in self.state.take_actions() {
            let call = match action {
                Action::Hold(keys) => Call::Hold(keys),
                Action::Release(keys) => Call::Release(keys),
                Action::Program(plan) => {
                    self.check_plan(&plan);
                    if self
                        .read_asked
                        .is_some_and(|since| self.now >= since + Duration::from_secs(2))
                    {
                        self.broken = Some("a change before a read that had waited".to_owned());
                    }
                    Call::Program(plan)
                }
                Action::Publish(publication) => {
                    self.check_publication(&publication);
                    Call::Publish(Box::new(publication))
                }
                Action::ReadPod { pod, asked } => Call::ReadPod(pod, asked),
                Action::Event(event) => {
                    self.record(|| format!("event {:?} {}: {}", event.kind, event.pod, event.note));
                    match event.kind {
                        EventKind::Repaired => self.seen.repaired += 1,
                        EventKind::NoFreePort if event.note.contains("--max-cooling") => {
                            self.seen.churned += 1;
                        }
                        EventKind::NoFreePort if event.note.contains("--namespace-share") => {
                            self.seen.bounded += 1;
                        }
                        EventKind::NoFreePort => self.seen.exhausted += 1,
                        EventKind::AnnotationContested => self.seen.contested += 1,
                        EventKind::HostIpNotOnNode => self.seen.moved_hosts += 1,
                        EventKind::PortConflict if event.note.contains("stays mapped") => {
                            self.seen.claims_bounded += 1;
                        }
                        EventKind::DataplaneError if event.note.contains(": the ") => {
                            self.seen.doubted += 1;
                        }
                        EventKind::DataplaneError if event.note.contains("(the test)") => {
                            self.seen.closed += 1;
                        }
                        EventKind::ForgedResult => {
                            self.seen.forged += 1;
                            if !self.forged.contains(&event.pod.uid) {
                                let pod = &event.pod;
                                self.broken = Some(format!("no user forged a result of {pod}"));
                            }
                        }
                        EventKind::PortConflict if event.note.contains("static") => {
                            self.seen.release_early += 1;
                        }
                        _ => {}
                    }
                    continue;
                }
            };
            self.calls.push(call);
        }
    }

    /// Another program removes some or all of our rules.
    fn damage(&mut self) {
        self.record(|| "damage".to_owned());
        self.damaged = true;
        if self.rng.random_range(0..2) == 0 {
            self.kernel.clear();
            self.intact = false;
        } else {
            self.kernel.pop_first();
        }
    }

    /// A check of the rules is due.
    pub(crate) fn ask_read(&mut self) {
        self.read_asked.get_or_insert(self.now);
        self.state.read_asked(self.now);
        self.calls.push(Call::Observe);
    }

    /// Another process takes a port that is not held, or ends.
    fn use_port(&mut self) {
        let port = HostPort::new(self.rng.random_range(20_000..20_012)).expect("a port");
        let key = (Protocol::Tcp, port);
        if !self.other_processes.remove(&key) && !self.keeper.contains(&key) {
            self.other_processes.insert(key);
        }
    }

    fn pass_time(&mut self) {
        let step = Duration::from_millis(self.rng.random_range(1..5000));
        self.now += step;
        self.tick();
    }

    /// A deadline that a tick does not move would keep the driver's loop busy for ever.
    pub(crate) fn tick(&mut self) {
        self.state.tick(self.now);
        if let Some(deadline) = self.state.next_deadline().filter(|at| *at <= self.now) {
            self.broken = Some(format!("the deadline {deadline:?} has passed and stays"));
        }
    }
}
