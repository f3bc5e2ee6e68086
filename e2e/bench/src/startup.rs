//! `e2e-bench startup`: how long the mapping of a pod takes on a real cluster, counted from the
//! container runtime's CNI result. The comparison is without CNI results, when the enforcer waits
//! for the pod's status.
//!
//! Four times are observed from outside the enforcer: the modification time of the result (up to
//! half a millisecond early; before Linux 6.13 up to a tick of 4 ms), the kernel's notification of
//! the rule, the patch in the API server's audit log, and the pod's announcement (its first words)
//! at a host outside the nodes.
//!
//! "One by one" means on an idle node: a pod is created only after the start of the previous one is
//! over, its status is written, and its rules are checked again.

mod fine;
mod priority;
mod rules;
mod trace;

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config as ClientConfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use self::fine::FineTimes;
use self::rules::Rules;
use self::trace::Trace;
use super::Options;
use super::report::{Bar, Report, Row};
use super::stats::percentile;
use e2e::cluster::Cluster;
use e2e::progress::say;
use e2e::starts::Collector;
use e2e::wait::{Probe, until};
use e2e::{Config, install};

const PODS: u16 = 200;
const TOGETHER: u16 = 50;
/// Pods on the node at the same time. Deleting each before the next would keep the node busy, but
/// running pods also cost time of runtime and kubelet (forty pods twice as much as five).
const BATCH: u16 = 20;
const NODE: &str = "node1";
const SPACE: &str = "startup";
const LIMIT: Duration = Duration::from_mins(2);
/// Pause between two pods that start one by one. The kubelet polls the runtime once a second and
/// writes status; the next pod must start on an idle node.
const REST: Duration = Duration::from_millis(1500);
/// Pause after a batch of pods was deleted.
const LONG_REST: Duration = Duration::from_secs(3);
/// The comparison by status is slower, so its number of pods is divided by this.
const FEWER: u16 = 4;
/// How many of the slowest starts, one by one, are printed.
const TOLD: usize = 5;
const STATUS: &str = "by status";
/// The bar from the result to the rule: the 99th percentile in ms of pods one by one.
const RULE_BAR: f64 = 15.0;
/// The bar from the result to the annotation: the 99th percentile in ms of pods one by one.
const PUBLISHED_BAR: f64 = 30.0;
/// The bar for publications that must be repeated because another write came first, in %.
const CONFLICTS_BAR: f64 = 5.0;

/// The starts with one of the two ways in which the enforcer learns pod addresses.
struct Starts {
    one_by_one: Vec<Trace>,
    together: Vec<Trace>,
}

pub(super) fn run(options: &Options) -> Result<Report> {
    let pods = options.pods.unwrap_or(PODS);
    let mut cluster = Cluster::start(&Config {
        name: format!("startup-{}", std::process::id()),
        ..Config::default()
    })?;
    install::install(&mut cluster)?;
    priority::favour_the_api_server(&cluster)?;
    cluster.kubectl_run(["create", "namespace", SPACE])?;
    until(
        "the default service account",
        LIMIT,
        Duration::from_millis(100),
        || {
            let account = ["-n", SPACE, "get", "serviceaccount", "default"];
            Ok(match cluster.kubectl_run(account) {
                Ok(_) => Probe::Done(()),
                Err(error) => Probe::Missing(format!("{error:#}")),
            })
        },
    )?;
    let collector = Collector::start(&cluster, SPACE)?;
    let times = FineTimes::keep()?;
    let bench = Bench {
        cluster: &cluster,
        collector: &collector,
        creator: Creator::new(&cluster)?,
    };
    say(format_args!(
        "{pods} pods one by one (by status {}), {TOGETHER} at once; the first pod of a node, for which the frame of the \
         rules is made, is left out",
        pods.div_ceil(FEWER)
    ));
    bench.start("warm", "warm", 1, 1)?;
    let ours = bench.measure("results", pods)?;
    print_the_slowest(&ours.one_by_one);
    // without the folder, the enforcer works as on a node without CNI results
    let patch = json!([{
        "op": "add",
        "path": "/spec/template/spec/containers/0/args/-",
        "value": "--cni-results=",
    }]);
    let patch = patch.to_string();
    let enforcer = [
        "patch",
        "daemonset",
        "enforcer",
        "--type=json",
        "-p",
        &patch,
    ];
    cluster.kubectl_run([&["-n", install::NAMESPACE][..], &enforcer].concat())?;
    install::rolled_out(&cluster, install::NAMESPACE, "daemonset/enforcer")?;
    bench.start("warm-status", "warm-status", 1, 1)?;
    let theirs = bench.measure("status", pods.div_ceil(FEWER))?;
    times.end()?;
    drop(collector);
    let conflicts = trace::conflicts(&cluster, SPACE)?;
    cluster.stop()?;
    let mut report = report(&ours, &theirs);
    report.push(
        Row::new(
            "publications refused because the pod had changed",
            "%",
            conflicts,
        )
        .bar(Bar::AtMost(CONFLICTS_BAR)),
    );
    Ok(report)
}

struct Bench<'a> {
    cluster: &'a Cluster,
    collector: &'a Collector,
    creator: Creator,
}

impl Bench<'_> {
    fn measure(&self, way: &str, pods: u16) -> Result<Starts> {
        let mut one_by_one = Vec::new();
        let mut left = pods;
        while left > 0 {
            let batch = left.min(BATCH);
            one_by_one.extend(self.start(way, &format!("{way}-{left}"), batch, 1)?);
            left -= batch;
        }
        let together = self.start(way, &format!("{way}-burst"), TOGETHER, TOGETHER)?;
        Ok(Starts {
            one_by_one,
            together,
        })
    }

    /// Starts pods, `at_once` at the same time, removes them, and returns their traces.
    fn start(&self, way: &str, prefix: &str, pods: u16, at_once: u16) -> Result<Vec<Trace>> {
        let rules = Rules::watch(self.cluster, NODE)?;
        let mut calls = Vec::new();
        for first in (0..pods).step_by(usize::from(at_once)) {
            let names = (first..(first + at_once).min(pods)).map(|n| format!("{prefix}-{n}"));
            let items: Vec<Value> = names.map(|name| self.pod(&name)).collect();
            let count = items.len();
            self.creator.create(items)?;
            calls.extend(self.collector.take(count, LIMIT)?);
            thread::sleep(REST);
        }
        // waits for patches that are not done yet (those of the kubelet, perhaps ours)
        let ready = [
            "wait",
            "--for=condition=Ready",
            "pods",
            "--all",
            "--timeout=120s",
        ];
        self.cluster
            .kubectl_run([&["-n", SPACE][..], &ready].concat())?;
        thread::sleep(REST);
        let traces = trace::join(self.cluster, NODE, SPACE, &calls, &rules.seen()?)?;
        if let Some(lost) = calls.iter().find(|call| !call.reached()) {
            bail!("{way}: {} was not reached: {:?}", lost.pod, lost.answer);
        }
        let all = ["delete", "pods", "--all", "--timeout=120s"];
        self.cluster
            .kubectl_run([&["-n", SPACE][..], &all].concat())?;
        thread::sleep(LONG_REST);
        Ok(traces)
    }

    fn pod(&self, name: &str) -> Value {
        let announce = self.collector.address.to_string();
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "annotations": { "tkestack.io/portmapping": "" } },
            "spec": {
                "nodeName": NODE,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "echo",
                    "image": "localhost/echo:1",
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["--tcp", "9040", "--announce", announce],
                    "ports": [{ "containerPort": 9040 }],
                }],
            },
        })
    }
}

/// Creates pods in this process, because the start of kubectl keeps a small machine busy for longer
/// than the measured time.
struct Creator {
    runtime: Runtime,
    pods: Api<Pod>,
}

impl Creator {
    fn new(cluster: &Cluster) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let pods = runtime.block_on(async {
            let config = Kubeconfig::read_from(cluster.kubeconfig())?;
            let options = KubeConfigOptions::default();
            let config = ClientConfig::from_custom_kubeconfig(config, &options).await?;
            anyhow::Ok(Api::namespaced(Client::try_from(config)?, SPACE))
        });
        let pods = pods.context("connect to the API server")?;
        Ok(Self { runtime, pods })
    }

    fn create(&self, pods: Vec<Value>) -> Result<()> {
        let params = PostParams::default();
        let create = |pod: Value| {
            let pod = serde_json::from_value(pod);
            async { anyhow::Ok(self.pods.create(&params, &pod?).await?) }
        };
        let all = futures::future::try_join_all(pods.into_iter().map(create));
        self.runtime
            .block_on(async { tokio::time::timeout(LIMIT, all).await })
            .context("the API server did not answer")?
            .context("create pods")?;
        Ok(())
    }
}

/// Prints the slowest starts, which show whether rules or the API server were slow.
fn print_the_slowest(traces: &[Trace]) {
    let mut slowest: Vec<&Trace> = traces.iter().collect();
    slowest.sort_by(|one, other| {
        let took = Trace::result_to_published;
        took(other).total_cmp(&took(one))
    });
    for trace in slowest.into_iter().take(TOLD) {
        say(format_args!("a slow start: {trace}"));
    }
}

/// A measure of the traces: its name, how it is computed, and its bar for pods one by one.
type Measure = (&'static str, fn(&Trace) -> f64, Bar);

/// A share of the traces: its name, the condition, and its bar.
type Share = (&'static str, fn(&Trace) -> bool, Bar);

fn report(ours: &Starts, theirs: &Starts) -> Report {
    let measures: [Measure; 7] = [
        (
            "result -> rule",
            Trace::result_to_rule,
            Bar::AtMost(RULE_BAR),
        ),
        (
            "result -> published",
            Trace::result_to_published,
            Bar::AtMost(PUBLISHED_BAR),
        ),
        ("patch within the API server", Trace::patch, Bar::None),
        (
            "kubelet's patch within the API server",
            Trace::patch_of_kubelet,
            Bar::None,
        ),
        ("result -> first words", Trace::result_to_words, Bar::None),
        ("rule -> first words", Trace::rule_to_words, Bar::None),
        ("first words -> answer", Trace::words_to_answer, Bar::None),
    ];
    let mut report = Report::default();
    let ways = [
        ("one by one", &ours.one_by_one, &theirs.one_by_one),
        ("50 at once", &ours.together, &theirs.together),
    ];
    for (how, ours, theirs) in ways {
        for (what, measure, bar) in measures {
            let values = |traces: &[Trace]| traces.iter().map(measure).collect::<Vec<f64>>();
            let (mine, other) = (values(ours), values(theirs));
            let shown = [
                ("min", 0),
                ("p50", 50),
                ("p90", 90),
                ("p99", 99),
                ("max", 100),
            ];
            for (name, percent) in shown {
                let (mine, other) = (percentile(&mine, percent), percentile(&other, percent));
                let judged = how == "one by one" && percent == 99;
                report.push(
                    Row::new(format!("{how}, {what}, {name}"), "ms", mine)
                        .against(STATUS, other, mine / other)
                        .bar(if judged { bar } else { Bar::None }),
                );
            }
        }
        let late = |traces: &[Trace], late: fn(&Trace) -> bool| {
            let count = traces.iter().filter(|trace| late(trace)).count();
            #[allow(clippy::cast_precision_loss, reason = "some hundreds")]
            let share = 100.0 * count as f64 / traces.len() as f64;
            share
        };
        let shares: [Share; 2] = [
            (
                "rule after the first words",
                Trace::is_late,
                Bar::AtMost(0.0),
            ),
            (
                "published after the first words",
                Trace::is_published_late,
                Bar::None,
            ),
        ];
        for (what, is, bar) in shares {
            let (mine, other) = (late(ours, is), late(theirs, is));
            report.push(
                Row::new(format!("{how}, {what}"), "%", mine)
                    .against(STATUS, other, mine / other)
                    .bar(bar),
            );
        }
    }
    report
}
