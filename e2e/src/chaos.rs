//! Chaos: in every round, faults chosen by a seeded generator hit a cluster, while a user outside talks
//! to every pod. The run checks what the user sees and what the kernel has.
//!
//! ```text
//! dice -> faults -> cluster <- settle (API, kernel, processes)
//!           |          ^
//!         record <- prober (one connection per pod, new ones all the time)
//! ```

mod api;
mod clock;
mod crashes;
mod dice;
mod faults;
mod flush;
mod inspect;
mod prober;
mod record;
mod rules;
mod settle;
mod tally;
mod thief;
mod users;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

pub use self::faults::Fault;

use self::api::Admin;
use self::dice::Dice;
use self::prober::Prober;
use self::record::{Record, counted};
use self::settle::CONVERGENCE;
use self::tally::Tally;
use self::view::{ANNOTATION, View};
use crate::install::{self, NAMESPACE as SYSTEM};
use crate::progress::{Step, out};
use crate::{Cluster, Config};

const NAMESPACE: &str = "chaos";
/// First port and size: small, so that a port is allocated again soon and mistakes show.
const RANGE: (u16, usize) = (20000, 400);
/// The cool-down is shorter than by default for the same reason. A flushed rule is noticed within the
/// five seconds in which a round must converge.
const ENFORCER_ARGS: [&str; 5] = [
    "run",
    "--range=20000-20399",
    "--cooldown=10s",
    "--quarantine=5s",
    "--check-every=3s",
];
const KEEPER_ARGS: [&str; 2] = ["keep", "--range=20000-20399"];
/// Pods that stay, per node.
const HERD: usize = 4;
/// A label with the pod's name.
const POD_LABEL: &str = "pod";
/// Pods that come and go.
const MAX_CROWD: usize = 24;
/// In how many of 100 rounds a second fault follows the first at once.
const SECOND: usize = 30;

/// What a run is asked to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many rounds.
    #[arg(long, default_value_t = 60)]
    pub rounds: u32,
    /// Repeats the faults of an earlier run.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Only these faults.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Fault>,
    /// The backend of the enforcers.
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,
    /// The `e2e` program that owns the cluster.
    #[arg(skip)]
    pub program: Option<PathBuf>,
}

/// What the enforcers are told to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// What they choose.
    #[default]
    Auto,
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
}

impl Backend {
    fn flag(self) -> String {
        use clap::ValueEnum;
        let value = self.to_possible_value();
        format!(
            "--backend={}",
            value.as_ref().map_or("auto", |value| value.get_name())
        )
    }
}

/// A run.
struct Chaos {
    cluster: Cluster,
    admin: Admin,
    view: View,
    record: Arc<Record>,
    backend: Backend,
    dice: Dice,
    nodes: Vec<String>,
    /// Names of the pods that should be there.
    expected: BTreeSet<String>,
    /// Ended containers by pod uid: a status that still names one is old.
    renewed: BTreeMap<String, String>,
    crowd: usize,
    rolls: u32,
    /// How long the product may take in this round.
    convergence: Duration,
}

/// Boots a cluster, runs all rounds, and fails on the first violation.
pub fn run(options: &Options) -> Result<()> {
    let seed = options.seed.unwrap_or_else(|| {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u64::from(now.subsec_micros())
    });
    let mut config = Config {
        quick_restarts: true,
        program: options.program.clone(),
        ..Config::default()
    };
    config.name = format!("chaos-{}", std::process::id());
    let mut cluster = Cluster::start(&config)?;
    install::install(&mut cluster)?;
    let mut chaos = Chaos::prepare(cluster, options.backend, seed)?;
    let outcome = chaos.rounds(options, seed);
    if outcome.is_err() {
        chaos.save_evidence();
        return outcome;
    }
    chaos.cluster.stop()
}

impl Chaos {
    fn prepare(cluster: Cluster, backend: Backend, seed: u64) -> Result<Self> {
        let args = enforcer_args(backend);
        let containers = json!({ "spec": { "template": { "spec": {
            "initContainers": [{ "name": "keeper", "args": KEEPER_ARGS }],
            "containers": [{ "name": "enforcer", "args": args }],
        } } } });
        let body = containers.to_string();
        cluster.kubectl_run(["-n", SYSTEM, "patch", "ds", "enforcer", "-p", &body])?;
        install::rolled_out(&cluster, SYSTEM, "daemonset/enforcer")?;
        cluster.kubectl_run(["create", "namespace", NAMESPACE])?;
        let mut addresses = BTreeMap::new();
        for node in cluster.nodes()? {
            let [address, _] = cluster.addresses(&node)?;
            addresses.insert(node, address);
        }
        let nodes = addresses.keys().cloned().collect();
        let view = View::watch(cluster.kubeconfig(), NAMESPACE, addresses)?;
        let record = Arc::default();
        crashes::watch(cluster.kubeconfig(), &record)?;
        let admin = Admin::new(cluster.kubeconfig(), NAMESPACE)?;
        let mut chaos = Self {
            cluster,
            admin,
            view,
            record,
            backend,
            dice: Dice::new(seed),
            nodes,
            expected: BTreeSet::new(),
            renewed: BTreeMap::new(),
            crowd: 0,
            rolls: 0,
            convergence: CONVERGENCE,
        };
        for node in chaos.nodes.clone() {
            for index in 0..HERD {
                chaos.create(&format!("herd-{node}-{index}"), &node)?;
            }
        }
        Ok(chaos)
    }

    fn create(&mut self, name: &str, node: &str) -> Result<()> {
        self.admin.create(&pod(name, node))?;
        self.expected.insert(name.to_owned());
        Ok(())
    }

    fn create_crowd(&mut self, count: usize) -> Result<usize> {
        let living = self
            .expected
            .iter()
            .filter(|name| name.starts_with("crowd"))
            .count();
        let count = count.min(MAX_CROWD.saturating_sub(living));
        for _ in 0..count {
            self.crowd += 1;
            let node = self.nodes[self.dice.below(self.nodes.len())].clone();
            self.create(&format!("crowd-{}", self.crowd), &node)?;
        }
        Ok(count)
    }

    fn enforcer_args(&self) -> Vec<String> {
        enforcer_args(self.backend)
    }

    fn rounds(&mut self, options: &Options, seed: u64) -> Result<()> {
        let rounds = options.rounds;
        out!(
            "chaos: seed {seed}, {rounds} rounds, enforcer {}",
            self.enforcer_args().join(" ")
        );
        let step = Step::start("the pods that stay");
        self.settle()?;
        step.done("mapped");
        let before = self.footprints()?;
        let prober = Prober::start(&self.cluster, &self.view, &self.record)?;
        let begun = Instant::now();
        let mut slowest = (Duration::ZERO, String::new());
        let mut tally = Tally::new(&options.only);
        for round in 1..=rounds {
            let mut done = Vec::new();
            self.convergence = CONVERGENCE;
            let count = if self.dice.chance(SECOND) { 2 } else { 1 };
            for _ in 0..count {
                let fault = tally.next(&mut self.dice);
                let injected = self
                    .inject(fault)
                    .with_context(|| format!("seed {seed}, round {round}: {fault}"))?;
                tally.count(injected.kind);
                done.push(injected.text);
            }
            let text = done.join(", ");
            let took = self
                .settle()
                .with_context(|| format!("seed {seed}, round {round}: after {text}"))?;
            if took >= slowest.0 {
                slowest = (took, format!("round {round}: {text}"));
            }
            self.record.end_round();
            out!(
                "round {round:4}  {text:56}  converged in {:4.2} s  {} pods",
                took.as_secs_f64(),
                self.expected.len()
            );
            if !self.record.violations().is_empty() {
                bail!(
                    "seed {seed}, round {round}: after {text}: {}",
                    self.record.violations().join("\n")
                );
            }
        }
        let lasted = begun.elapsed();
        self.compare(&before)
            .with_context(|| format!("seed {seed}, after {rounds} rounds"))?;
        prober.stop()?;
        self.empty()
            .with_context(|| format!("seed {seed}, after the last pod"))?;
        if !self.record.violations().is_empty() {
            bail!(
                "seed {seed}, at the end: {}",
                self.record.violations().join("\n")
            );
        }
        out!("\n{tally}");
        let record = &self.record;
        out!(
            "\nseed {seed}: {rounds} rounds in {:.0} s, 0 violations\n\
             new connections {}, datagrams {}, messages {} on {} connections ({} ended by a fault that ends them), \
             {} tries to steal a port\nslowest convergence {:.2} s, {}",
            lasted.as_secs_f64(),
            counted(&record.calls),
            counted(&record.datagrams),
            counted(&record.messages),
            counted(&record.streams),
            counted(&record.excused_breaks),
            counted(&record.theft_tries),
            slowest.0.as_secs_f64(),
            slowest.1,
        );
        tally.suffices(rounds)?;
        record.suffices(tally.has(Fault::Thief))
    }
}

fn enforcer_args(backend: Backend) -> Vec<String> {
    let mut args = ENFORCER_ARGS.map(str::to_owned).to_vec();
    args.push(backend.flag());
    args
}

/// A pod that answers with its name and uid.
fn pod(name: &str, node: &str) -> Value {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "labels": { POD_LABEL: name }, "annotations": { ANNOTATION: "" },
        },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{
                "name": "echo",
                "image": "localhost/echo:1",
                "imagePullPolicy": "IfNotPresent",
                "args": ["--talk", "9040", "--udp", "9041"],
                "ports": [{ "containerPort": 9040 }, { "containerPort": 9041, "protocol": "UDP" }],
                "env": [field("POD_NAME", "metadata.name"), field("POD_UID", "metadata.uid")],
            }],
        },
    })
}
