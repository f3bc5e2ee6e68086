//! After a round: has the product converged, how long did that take, and is anything left over?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use super::inspect::{self, ECHO, ENFORCER, KEEPER};
use super::{Chaos, RANGE};
use super::{prober, rules};
use crate::install;
use crate::progress::say;
use crate::wait::{Probe, until};

/// How long the product may take once the cluster itself works again.
pub(super) const CONVERGENCE: Duration = Duration::from_secs(5);
/// How long the cluster itself may take.
const RECOVERY: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(50);
/// What a process may have grown by, without it being a leak: allocators keep what they had.
const SLACK_KIB: u64 = 12 * 1024;
const SLACK_DESCRIPTORS: usize = 8;

/// Memory in KiB and descriptors (without those of held ports) by node and program.
pub(super) type Footprints = BTreeMap<(String, &'static str), (u64, usize)>;

impl Chaos {
    /// Waits until the product has converged; returns how long that took, measured from
    /// the moment at which API server, nodes and containers are all up again.
    pub(super) fn settle(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let mut whole_since = Instant::now();
        loop {
            let missing = match self.broken() {
                Some(broken) => {
                    whole_since = Instant::now();
                    ensure!(
                        begun.elapsed() < RECOVERY,
                        "the cluster did not recover: {broken}"
                    );
                    broken
                }
                None => match self.unsettled() {
                    Ok(None) => {
                        self.renewed.clear();
                        return Ok(whole_since.elapsed());
                    }
                    Ok(Some(missing)) => missing,
                    Err(error) => format!("{error:#}"),
                },
            };
            if whole_since.elapsed() > self.convergence {
                bail!("not converged after {:?}: {missing}", self.convergence);
            }
            thread::sleep(POLL);
        }
    }

    /// What the cluster itself still lacks.
    fn broken(&self) -> Option<String> {
        match self.admin.unready_node() {
            Ok(None) => {}
            Ok(Some(node)) => return Some(format!("{node} is not Ready")),
            Err(error) => return Some(format!("{error:#}")),
        }
        let pods = self.view.all();
        for name in &self.expected {
            let Some(pod) = pods.values().find(|pod| pod.name == *name) else {
                return Some(format!("{name} is not in the watch yet"));
            };
            if !pod.running || pod.pod_ips.is_empty() {
                return Some(format!("{name} does not run"));
            }
            // the condition is True and the kubelet has not read it yet: it backs off after an API server
            // that was down
            if !pod.entries.is_empty() && !pod.ready {
                return Some(format!("the kubelet does not report {name} as Ready yet"));
            }
            if self.renewed.get(&pod.uid) == Some(&pod.container) {
                return Some(format!("{name} is still reported as before its restart"));
            }
        }
        for node in &self.nodes {
            let wanted = pods
                .values()
                .filter(|pod| pod.node == *node && self.expected.contains(&pod.name));
            let wanted = wanted.count();
            for (words, count) in [(ENFORCER, 1), (KEEPER, 1), (ECHO, wanted)] {
                let found = inspect::pids(&self.cluster, node, &words).map_or(0, |pids| pids.len());
                if found != count {
                    return Some(format!(
                        "{} runs {found} times on {node}, not {count}",
                        words.join(" ")
                    ));
                }
            }
        }
        None
    }

    /// What the product still lacks.
    fn unsettled(&self) -> Result<Option<String>> {
        let pods: Vec<_> = self
            .view
            .all()
            .into_values()
            .filter(|pod| self.expected.contains(&pod.name))
            .collect();
        for pod in &pods {
            if !pod.is_up() {
                return Ok(Some(format!(
                    "{} ({}) is not up: {}, Ready {}",
                    pod.name, pod.uid, pod.condition, pod.ready
                )));
            }
        }
        for node in &self.nodes {
            let here = pods.iter().filter(|pod| pod.node == *node);
            let wanted: BTreeSet<_> = here.clone().flat_map(rules::rules_of).collect();
            let state = inspect::state(inspect::only(&self.cluster, node, &ENFORCER)?)?;
            let phases: BTreeMap<_, _> = list(&state["pods"])
                .map(|pod| {
                    (
                        pod["uid"].as_str().unwrap_or_default(),
                        pod["phase"].as_str().unwrap_or_default(),
                    )
                })
                .collect();
            for pod in here {
                if phases.get(&*pod.uid).copied() != Some("published") {
                    return Ok(Some(format!(
                        "/state of {node} has the phase {:?} for {}",
                        phases.get(&*pod.uid),
                        pod.name
                    )));
                }
            }
            let rules = rules::rules(&self.cluster, node)?;
            if rules != wanted {
                let difference: Vec<_> = rules.symmetric_difference(&wanted).collect();
                return Ok(Some(format!(
                    "rules of {node} differ from what is published: {difference:?}"
                )));
            }
            if state["mappings"].as_u64() != u64::try_from(rules.len()).ok() {
                return Ok(Some(format!(
                    "/state of {node} counts {} mappings, not {}",
                    state["mappings"],
                    rules.len()
                )));
            }
            let mapped = self.view.mapped(node);
            let taken = inspect::taken(&self.cluster, node, mapped.clone())?;
            if let Some(free) = mapped.iter().find(|port| !taken.contains(port)) {
                return Ok(Some(format!("{free:?} of {node} is mapped and not held")));
            }
        }
        prober::reach(&self.cluster, &self.view, pods)
    }

    /// What the programs cost now.
    pub(super) fn footprints(&self) -> Result<Footprints> {
        let mut found = Footprints::new();
        for node in &self.nodes {
            let (_, held) = self.held(node)?;
            for (name, words, of_ports) in [("enforcer", ENFORCER, 0), ("keeper", KEEPER, held)] {
                let pid = inspect::only(&self.cluster, node, &words)?;
                let (memory, open) = inspect::footprint(pid)?;
                found.insert(
                    (node.clone(), name),
                    (memory, open.saturating_sub(of_ports)),
                );
            }
        }
        Ok(found)
    }

    /// How many ports are leased or in cool-down by /state, and how many are held.
    fn held(&self, node: &str) -> Result<(usize, usize)> {
        let range = (RANGE.0..).take(RANGE.1);
        let ports =
            range.flat_map(|port| ["TCP", "UDP"].map(|protocol| (protocol.to_owned(), port)));
        let ports: Vec<_> = ports.collect();
        let counts = |state: &Value| {
            let leased: usize = list(&state["pods"])
                .map(|pod| list(&pod["ports"]).count())
                .sum();
            let cooling = state["cooling"]
                .as_u64()
                .and_then(|cooling| usize::try_from(cooling).ok());
            leased + cooling.unwrap_or_default()
        };
        let what = format!("/state of {node} to stand still");
        until(&what, Duration::from_secs(20), POLL, || {
            let before = inspect::state(inspect::only(&self.cluster, node, &ENFORCER)?)?;
            let taken = inspect::taken(&self.cluster, node, ports.clone())?.len();
            let after = inspect::state(inspect::only(&self.cluster, node, &ENFORCER)?)?;
            let same = counts(&before) == counts(&after);
            Ok(if same && counts(&after) == taken {
                Probe::Done((counts(&after), taken))
            } else {
                Probe::Missing(format!(
                    "{} leased or cooling, {taken} held",
                    counts(&after)
                ))
            })
        })
    }

    /// Held ports are those leased or cooling; memory and descriptors have not grown.
    pub(super) fn compare(&self, before: &Footprints) -> Result<()> {
        // a new enforcer may still be starting, and unused connections to the API server are closed after 90 s
        let mut last = Footprints::new();
        let settled = until(
            "an enforcer and a keeper on each node, without unused connections",
            Duration::from_mins(2),
            POLL * 10,
            || {
                last = match self.footprints() {
                    Ok(after) => after,
                    Err(error) => return Ok(Probe::Missing(format!("{error:#}"))),
                };
                let mut both = last
                    .iter()
                    .filter_map(|(who, (_, open))| Some((who, *open, before.get(who)?.1)));
                let more = both.find(|(_, open, before)| *open > before + SLACK_DESCRIPTORS);
                Ok(match more {
                    None => Probe::Done(()),
                    Some((who, open, _)) => Probe::Missing(format!("{who:?}: {open} descriptors")),
                })
            },
        );
        if last.is_empty() {
            settled?;
        }
        let after = last;
        for (who, (memory, open)) in after {
            let Some((memory_before, open_before)) = before.get(&who) else {
                continue;
            };
            say(format_args!(
                "{} of {}: {memory_before} -> {memory} KiB, {open_before} -> {open} descriptors without those of ports",
                who.1, who.0
            ));
            ensure!(
                memory <= memory_before + SLACK_KIB,
                "{who:?} grew from {memory_before} to {memory} KiB"
            );
            ensure!(
                open <= open_before + SLACK_DESCRIPTORS,
                "{who:?}: {open_before} descriptors, now {open}"
            );
        }
        Ok(())
    }

    /// Deletes every pod: afterwards no rule, no lease and no held port is left.
    pub(super) fn empty(&mut self) -> Result<()> {
        for pod in self.view.all().into_values().filter(|pod| !pod.deleting) {
            self.record.doom(&pod.uid);
            self.admin.delete(&pod.name)?;
        }
        self.expected.clear();
        until(
            "nodes without pods to hold nothing",
            Duration::from_mins(1),
            POLL * 10,
            || {
                if !self.view.all().is_empty() {
                    return Ok(Probe::Missing("pods are still ending".to_owned()));
                }
                for node in &self.nodes {
                    let rules = rules::rules(&self.cluster, node)?;
                    let (leased, held) = match self.held(node) {
                        Ok(counts) => counts,
                        // a new enforcer may still be starting
                        Err(error) => return Ok(Probe::Missing(format!("{error:#}"))),
                    };
                    if !rules.is_empty() || leased + held > 0 {
                        return Ok(Probe::Missing(format!(
                            "{node}: {leased} leased or cooling, {held} held, rules {rules:?}"
                        )));
                    }
                }
                Ok(Probe::Done(()))
            },
        )
    }

    /// Writes the state of pods, enforcers and rules into files next to the logs, and prints their paths.
    pub(super) fn save_evidence(&self) {
        let Ok(logs) = self.cluster.logs() else {
            return;
        };
        let keep = |name: &str, text: String| {
            let file = logs.join(format!("evidence-{name}.txt"));
            match fs::write(&file, text) {
                Ok(()) => say(format_args!("evidence: {}", file.display())),
                Err(error) => say(format_args!("cannot write {}: {error}", file.display())),
            }
        };
        keep("pods", format!("{:#?}", self.view.all()));
        for node in &self.nodes {
            let state = inspect::only(&self.cluster, node, &ENFORCER).and_then(inspect::state);
            let rules = self.run(node, &["iptables-save", "-t", "nat"]);
            keep(
                node,
                format!(
                    "{}\n{}",
                    state.map_or_else(|error| format!("{error:#}"), |state| format!("{state:#}")),
                    rules.unwrap_or_else(|error| format!("{error:#}"))
                ),
            );
        }
        let arguments = [
            "logs",
            "-n",
            install::NAMESPACE,
            "--all-containers",
            "--prefix",
            "--tail=400",
        ];
        let selector = ["-l", "app.kubernetes.io/component=enforcer"];
        let reply = self.cluster.kubectl_run(arguments.iter().chain(&selector));
        keep("log", reply.unwrap_or_else(|error| format!("{error:#}")));
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> + Clone {
    value
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}
