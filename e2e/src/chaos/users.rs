//! What users and administrators do: they change their minds, remove files, give a node the address of a
//! Service, and roll out flags that are wrong.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Chaos;
use super::faults::{Fault, Injected, RESULTS};
use super::prober::call;
use super::record::count;
use super::rules::{self, rules_of};
use super::view::Seen;
use crate::visit;
use crate::wait::{Probe, until};

/// The product maps a pod again within 10 s of the removal of its result.
const MAPPED_AGAIN: Duration = Duration::from_secs(10);
/// How long an enforcer that runs may take to notice a removed result.
const NOTICED: Duration = Duration::from_secs(3);
/// How long kube-proxy and the kubelet may take.
const CLUSTER_LIMIT: Duration = Duration::from_mins(1);
const ROLL_LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(50);
/// How long the Service is called while its address is local to a node.
const LOCAL: Duration = Duration::from_secs(2);
/// How long one of those calls may fail and be tried again: the machine is shared.
const GRACE: Duration = Duration::from_secs(3);
/// Flags with which no enforcer starts.
pub(super) const BAD_ARGS: [&str; 2] = ["run", "--check-every=often"];
const SERVICE: &str = "local";

impl Chaos {
    /// The pods of this node that should answer now.
    fn up_on(&self, node: &str) -> Vec<Seen> {
        let all = self.view.all().into_values();
        all.filter(|pod| pod.node == node && pod.is_up() && !self.record.is_doomed(&pod.uid))
            .collect()
    }

    /// The runtime's results are removed. The pods are mapped again once they are known to run.
    pub(super) fn wipe_results(&mut self, node: &str) -> Result<Injected> {
        // after an earlier wipe only new pods have results
        self.create_crowd(3)?;
        self.settle()?;
        let mapped = self.up_on(node);
        self.record.unreachable(node);
        self.record.disturb(node);
        self.convergence = MAPPED_AGAIN;
        let folder = format!("/proc/{}/root/{RESULTS}", self.cluster.pid(node)?);
        let mut wiped = 0;
        match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            files => {
                for file in files.with_context(|| format!("list {folder}"))? {
                    // a pod that ends removes its own
                    wiped += usize::from(fs::remove_file(file?.path()).is_ok());
                }
            }
        }
        // Else the round could end before the enforcer has noticed. One that starts at this moment sees
        // no result, and keeps the mappings.
        let begun = Instant::now();
        let gone = |pod: &Seen| {
            let rules = rules::rules(&self.cluster, node);
            rules.is_ok_and(|rules| !rules_of(pod).is_subset(&rules))
        };
        while begun.elapsed() < NOTICED && !mapped.iter().any(gone) {
            thread::sleep(POLL);
        }
        let text = format!("wipe-results {node} ({wiped})");
        Ok(match wiped {
            0 => Injected::nothing(text),
            _ => Injected::new(Fault::WipeResults, text),
        })
    }

    /// A user asks for other ports again and again, and in the end for all again.
    pub(super) fn churn(&mut self) -> Result<Injected> {
        let nodes = self.nodes.clone();
        let up: Vec<_> = nodes.iter().flat_map(|node| self.up_on(node)).collect();
        let Some(pod) = self.dice.some(up, 1).pop() else {
            return Ok(Injected::nothing("no pod to annotate".to_owned()));
        };
        self.record.disturb(&pod.uid);
        self.record.unreachable(&pod.uid);
        let asks = 3 + self.dice.below(8);
        for _ in 0..asks {
            let ask = match self.dice.below(4) {
                0 => Value::Null,
                1 => json!(""),
                2 => json!(r#"[{"containerPort":9041,"protocol":"UDP"}]"#),
                _ => json!(format!(
                    r#"[{{"containerPort":{}}}]"#,
                    9040 + self.dice.below(9)
                )),
            };
            self.admin.annotate(&pod.name, &ask)?;
            thread::sleep(Duration::from_millis(self.dice.below(60) as u64));
        }
        self.admin.annotate(&pod.name, &json!(""))?;
        self.record.disturb(&pod.uid);
        let text = format!("churn-annotation {} ({asks} asks)", pod.name);
        Ok(Injected::new(Fault::ChurnAnnotation, text))
    }

    /// New enforcers cannot start; then the rollout is undone. All the time the earlier ones act, no
    /// port is free, and every pod answers.
    pub(super) fn bad_rollout(&mut self) -> Result<String> {
        self.admin.set_enforcer_args(&BAD_ARGS)?;
        until(
            "a new enforcer to fail again and again",
            ROLL_LIMIT,
            POLL * 4,
            || {
                Ok(match self.admin.restarts_with(&BAD_ARGS) {
                    Ok(restarts) if restarts >= 2 => Probe::Done(()),
                    Ok(restarts) => Probe::Missing(format!("{restarts} restarts")),
                    Err(error) => Probe::Missing(format!("{error:#}")),
                })
            },
        )?;
        let made = self.create_crowd(2)?;
        let mut tries = 0;
        for node in self.nodes.clone() {
            tries += self.steal(&node)?.0;
        }
        self.admin.set_enforcer_args(&self.enforcer_args())?;
        self.await_rollout()?;
        Ok(format!("bad-rollout, {made} pods made, {tries} thefts"))
    }

    /// A Service's address is local to a node, as kube-proxy's ipvs mode and load balancers make it,
    /// and its port is the host port of a pod. The Service goes on answering.
    pub(super) fn local_service(&mut self, node: &str) -> Result<Injected> {
        // an earlier fault of the round may keep the Service's pod from answering
        self.settle()?;
        let up = self.up_on(node);
        let &[mapped, backend] = self.dice.some(up.iter().collect(), 2).as_slice() else {
            let text = format!("too few pods on {node} for a Service");
            return Ok(Injected::nothing(text));
        };
        let host = self.view.endpoint(mapped, "TCP");
        let host = host.context("a mapped pod without a TCP port")?;
        let ip = self
            .admin
            .create_service(SERVICE, &backend.name, host.port())?;
        let service = SocketAddr::new(
            ip.parse().with_context(|| format!("parse {ip}"))?,
            host.port(),
        );
        let route =
            ["ip", "route", "replace", &ip, "via", &host.ip().to_string()].map(str::to_owned);
        let run = |at: &str, words: &[String]| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.run(at, &words).map(drop)
        };
        run("client", &route)?;
        let hosts = [node, "client"];
        until("the Service to answer", CLUSTER_LIMIT, POLL, || {
            for at in hosts {
                if let Err(error) = visit::run_at(&self.cluster, at, move || call(service))? {
                    return Ok(Probe::Missing(format!("{service} from {at}: {error}")));
                }
            }
            Ok(Probe::Done(()))
        })?;
        self.run(
            node,
            &["ip", "address", "replace", &format!("{ip}/32"), "dev", "lo"],
        )?;
        let expected = format!("{} {}", backend.name, backend.uid);
        let mut calls = 0;
        for at in hosts {
            let (record, expected, of) = (self.record.clone(), expected.clone(), at.to_owned());
            calls += visit::run_at(&self.cluster, at, move || {
                let (end, mut calls) = (Instant::now() + LOCAL, 0);
                while Instant::now() < end {
                    calls += 1;
                    count(&record.calls);
                    match patiently(service) {
                        Ok(answer) if answer.starts_with(&expected) => {}
                        Ok(answer) => record.violation(format!(
                            "wrong pod: the Service {service} of {expected} answered {answer:?} on {of}"
                        )),
                        Err(error) => record.violation(format!(
                            "the Service {service} of {expected} does not answer on {of}: {error}"
                        )),
                    }
                    thread::sleep(POLL);
                }
                calls
            })?;
        }
        self.run(
            node,
            &["ip", "address", "delete", &format!("{ip}/32"), "dev", "lo"],
        )?;
        self.run("client", &["ip", "route", "delete", &ip])?;
        self.admin.delete_service(SERVICE)?;
        let text = format!("local-service {node} {service} ({calls} calls)");
        Ok(Injected::new(Fault::LocalService, text))
    }

    pub(super) fn await_rollout(&self) -> Result<()> {
        until("a rolling update", ROLL_LIMIT, POLL * 4, || {
            Ok(match self.admin.unrolled() {
                Ok(None) => Probe::Done(()),
                Ok(Some(missing)) => Probe::Missing(missing),
                Err(error) => Probe::Missing(format!("{error:#}")),
            })
        })
    }
}

/// The answer to one of several tries.
fn patiently(endpoint: SocketAddr) -> io::Result<String> {
    let begun = Instant::now();
    loop {
        match call(endpoint) {
            Err(_) if begun.elapsed() < GRACE => {}
            outcome => return outcome,
        }
    }
}
