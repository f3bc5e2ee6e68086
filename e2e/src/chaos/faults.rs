//! The faults, and how the driver makes each happen.

use std::fmt::{self, Display};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::inspect::{self, ENFORCER, KEEPER, WEBHOOK};
use super::view::Seen;
use super::{Chaos, clock};
use crate::wait::{Probe, until};

/// How much later than its container an enforcer works. Shorter than its time limits: one that stood still for
/// longer in a request to its keeper finds the limit over, and ends.
const LATE: Duration = Duration::from_secs(4);
/// How long a node that starts may take until its enforcer starts.
const START_LIMIT: Duration = Duration::from_mins(2);
const OUTAGE: Duration = Duration::from_secs(5);
/// How far a clock is set back at most: the cluster's certificates have been valid for an hour.
const BACK: usize = 50 * 60;
/// How far it is set forward at most.
const FORWARD: usize = 24 * 60 * 60;
/// Where the container runtime keeps CNI results.
pub(super) const RESULTS: &str = "var/lib/cni/results";

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// SIGKILL to an enforcer.
    KillEnforcer,
    /// SIGKILL to a keeper.
    KillKeeper,
    /// An enforcer's pod is deleted.
    DeleteEnforcer,
    /// A rolling update of the `DaemonSet`.
    Roll,
    /// Our chains are flushed, or that of the table of nftables which translates.
    FlushChains,
    /// The nat table is flushed, and the rules that are not ours are loaded again; with nftables our table is
    /// deleted.
    FlushNat,
    /// `nft flush ruleset`, and the rules that are not ours are loaded again.
    FlushRuleset,
    /// The API server is stopped (SIGSTOP) for five seconds.
    PauseApi,
    /// The API server is killed, and started again after a second.
    RestartApi,
    /// containerd is killed, and started again after a second.
    RestartRuntime,
    /// Every process of a node is killed, its network is gone, and it starts again.
    Reboot,
    /// A dozen pods are created.
    Create,
    /// Up to a dozen pods are deleted.
    Delete,
    /// Up to a dozen pods are evicted.
    Evict,
    /// A process on a node binds random ports of the range.
    Thief,
    /// All conntrack entries are deleted.
    FlushConntrack,
    /// A pod's sandbox is killed.
    KillSandbox,
    /// The clock of our programs on a node is set to another time. The CNI results there get times that
    /// are shifted by as much in the other direction.
    StepClock,
    /// The runtime's CNI results are removed; the pods run on.
    WipeResults,
    /// The address of a Service is local to a node, and the Service has the port of a mapped pod.
    LocalService,
    /// A rolling update to a flag that is wrong, and its undoing.
    BadRollout,
    /// A user changes a pod's annotation again and again.
    ChurnAnnotation,
    /// As a reboot, and the enforcer works only some seconds after its start.
    LateEnforcer,
}

impl Fault {
    /// How often each is thrown, relative to the others.
    pub(super) const WEIGHTS: [(Self, usize); 23] = [
        (Self::KillEnforcer, 9),
        (Self::KillKeeper, 8),
        (Self::DeleteEnforcer, 5),
        (Self::Roll, 7),
        (Self::FlushChains, 5),
        (Self::FlushNat, 5),
        (Self::FlushRuleset, 5),
        (Self::PauseApi, 4),
        (Self::RestartApi, 3),
        (Self::RestartRuntime, 5),
        (Self::Reboot, 5),
        (Self::Create, 8),
        (Self::Delete, 8),
        (Self::Evict, 6),
        (Self::Thief, 8),
        (Self::FlushConntrack, 5),
        (Self::KillSandbox, 6),
        (Self::StepClock, 6),
        (Self::WipeResults, 6),
        (Self::LocalService, 4),
        (Self::BadRollout, 3),
        (Self::ChurnAnnotation, 8),
        (Self::LateEnforcer, 3),
    ];
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use clap::ValueEnum;
        let value = self.to_possible_value();
        f.pad(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// What was done.
pub(super) struct Injected {
    /// None if there was nothing to do it to.
    pub(super) kind: Option<Fault>,
    /// For the round's line.
    pub(super) text: String,
}

impl Injected {
    pub(super) fn new(kind: Fault, text: String) -> Self {
        let kind = Some(kind);
        Self { kind, text }
    }

    pub(super) fn nothing(text: String) -> Self {
        Self { kind: None, text }
    }
}

impl Chaos {
    /// Makes it happen.
    pub(super) fn inject(&mut self, fault: Fault) -> Result<Injected> {
        let node = self.nodes[self.dice.below(self.nodes.len())].clone();
        let mut text = format!("{fault} {node}");
        match fault {
            Fault::KillEnforcer => return self.kill(fault, &node, ENFORCER),
            Fault::KillKeeper => {
                self.record.unheld(&node);
                return self.kill(fault, &node, KEEPER);
            }
            Fault::DeleteEnforcer => return self.delete_enforcers(&node),
            Fault::Roll => {
                self.roll()?;
                "roll".clone_into(&mut text);
            }
            Fault::FlushChains | Fault::FlushNat | Fault::FlushRuleset => {
                self.flush(fault, &node)?;
            }
            Fault::PauseApi => {
                let api = ("control-plane", "kube-apiserver");
                self.cluster
                    .signal_component(api.0, api.1, Signal::SIGSTOP)?;
                thread::sleep(OUTAGE);
                self.cluster
                    .signal_component(api.0, api.1, Signal::SIGCONT)?;
                "pause-api 5 s".clone_into(&mut text);
            }
            Fault::RestartApi => {
                self.restart("control-plane", "kube-apiserver")?;
                "restart-api".clone_into(&mut text);
            }
            Fault::RestartRuntime => self.restart(&node, "containerd")?,
            Fault::Reboot => self.reboot(&node)?,
            Fault::Create => return self.create_some(),
            Fault::Delete | Fault::Evict => return self.remove_crowd(fault),
            Fault::Thief => {
                let (tries, taken) = self.steal(&node)?;
                text = format!("thief {node} ({taken} of {tries})");
            }
            Fault::FlushConntrack => {
                self.record.disturb(&node);
                self.record.unreachable(&node);
                self.run(&node, &["conntrack", "-F"])?;
            }
            Fault::KillSandbox => return self.kill_sandbox(),
            Fault::StepClock => text = self.step_clock(&node)?,
            Fault::WipeResults => return self.wipe_results(&node),
            Fault::LocalService => return self.local_service(&node),
            Fault::BadRollout => text = self.bad_rollout()?,
            Fault::ChurnAnnotation => return self.churn(),
            Fault::LateEnforcer => {
                self.reboot(&node)?;
                self.delay_enforcer(&node)?;
            }
        }
        Ok(Injected::new(fault, text))
    }

    pub(super) fn run(&self, node: &str, command: &[&str]) -> Result<String> {
        let output = self.cluster.exec(node, command)?;
        ensure!(
            output.status.success(),
            "{command:?} on {node}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn kill(&self, fault: Fault, node: &str, words: [&str; 2]) -> Result<Injected> {
        let found = inspect::pids(&self.cluster, node, &words)?;
        // an earlier fault of this round may have killed it already
        if found.is_empty() {
            return Ok(Injected::nothing(format!("no process to kill on {node}")));
        }
        for pid in found {
            self.record_end(pid);
            sigkill(pid);
        }
        Ok(Injected::new(fault, format!("{fault} {node}")))
    }

    /// A program that ends from now on was ended by a fault.
    fn record_end(&self, pid: u32) {
        if let Some(container) = inspect::container_of(pid) {
            self.record.kill(container);
        }
    }

    fn delete_enforcers(&self, node: &str) -> Result<Injected> {
        self.record.unheld(node);
        let mut deleted = 0;
        for (at, name) in self.admin.enforcers()? {
            if at == node {
                self.admin.delete_enforcer(&name)?;
                deleted += 1;
            }
        }
        Ok(match deleted {
            0 => Injected::nothing(format!("no enforcer to delete on {node}")),
            _ => Injected::new(
                Fault::DeleteEnforcer,
                format!("{} {node}", Fault::DeleteEnforcer),
            ),
        })
    }

    fn create_some(&mut self) -> Result<Injected> {
        let made = self.create_crowd(12)?;
        let text = format!("create {made} pods");
        Ok(match made {
            0 => Injected::nothing(text),
            _ => Injected::new(Fault::Create, text),
        })
    }

    fn roll(&mut self) -> Result<()> {
        self.rolls += 1;
        self.admin.roll(&self.rolls.to_string())?;
        self.await_rollout()
    }

    fn restart(&self, host: &str, program: &str) -> Result<()> {
        self.cluster.stop_component(host, program)?;
        thread::sleep(Duration::from_secs(1));
        self.cluster.resume_component(host, program)
    }

    fn reboot(&mut self, node: &str) -> Result<()> {
        self.record.disturb(node);
        self.record.unreachable(node);
        self.record.unheld(node);
        for words in [&ENFORCER[..], &KEEPER, &WEBHOOK] {
            for pid in inspect::pids(&self.cluster, node, words)? {
                self.record_end(pid);
            }
        }
        self.record.reboot(node);
        let lost = self.view.all().into_values().filter(|pod| pod.node == node);
        self.renewed
            .extend(lost.map(|pod| (pod.uid, pod.container)));
        let number = node
            .trim_start_matches("node")
            .parse()
            .context("a node's number")?;
        self.cluster.kill_node(number)?;
        self.cluster.add_node(number)
    }

    fn delay_enforcer(&self, node: &str) -> Result<()> {
        let started = || {
            let found = inspect::pids(&self.cluster, node, &ENFORCER)?;
            Ok(match found.first() {
                Some(pid) => Probe::Done(*pid),
                None => Probe::Missing("no enforcer".to_owned()),
            })
        };
        let poll = Duration::from_millis(20);
        let late = until("an enforcer to start", START_LIMIT, poll, started)?;
        signal(late, Signal::SIGSTOP);
        thread::sleep(LATE);
        signal(late, Signal::SIGCONT);
        Ok(())
    }

    fn step_clock(&mut self, node: &str) -> Result<String> {
        let ahead = if self.dice.chance(50) {
            -i64::try_from(self.dice.below(BACK))?
        } else {
            i64::try_from(self.dice.below(FORWARD))?
        };
        for words in [&ENFORCER[..], &KEEPER, &WEBHOOK] {
            for pid in inspect::pids(&self.cluster, node, words)? {
                clock::set(pid, ahead)?;
            }
        }
        let folder = format!("/proc/{}/root/{RESULTS}", self.cluster.pid(node)?);
        clock::shift_files(Path::new(&folder), -ahead)?;
        Ok(format!("step-clock {node} {ahead:+} s"))
    }

    fn remove_crowd(&mut self, fault: Fault) -> Result<Injected> {
        let crowd = self.view.all().into_values();
        let crowd: Vec<_> = crowd
            .filter(|pod| pod.name.starts_with("crowd") && !pod.deleting)
            .collect();
        if crowd.is_empty() {
            return self.create_some();
        }
        let count = 6 + self.dice.below(7);
        let gone = self.dice.some(crowd, count);
        for pod in &gone {
            self.record.doom(&pod.uid);
            self.expected.remove(&pod.name);
            match fault {
                Fault::Evict => self.admin.evict(&pod.name)?,
                _ => self.admin.delete(&pod.name)?,
            }
        }
        Ok(Injected::new(fault, format!("{fault} {} pods", gone.len())))
    }

    fn kill_sandbox(&mut self) -> Result<Injected> {
        let up: Vec<_> = self.view.all().into_values().filter(Seen::is_up).collect();
        let Some(pod) = self.dice.some(up, 1).pop() else {
            return Ok(Injected::nothing("no sandbox to kill".to_owned()));
        };
        // every process of a pod is in a cgroup below one named after its uid
        let marker = pod.uid.clone();
        let pauses = inspect::pids(&self.cluster, &pod.node, &["/echo", "--pause"])?;
        let pause = pauses.into_iter().find(|pid| {
            let cgroups =
                std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            cgroups.contains(&marker)
        });
        let Some(pause) = pause else {
            let text = format!("no sandbox of {} to kill", pod.name);
            return Ok(Injected::nothing(text));
        };
        self.record.disturb(&pod.uid);
        self.record.unreachable(&pod.uid);
        self.renewed.insert(pod.uid.clone(), pod.container);
        sigkill(pause);
        let text = format!("kill-sandbox {}", pod.name);
        Ok(Injected::new(Fault::KillSandbox, text))
    }
}

fn sigkill(pid: u32) {
    signal(pid, Signal::SIGKILL);
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // a process that has ended already is as good
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
