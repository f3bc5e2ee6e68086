//! `e2e-bench admission`: what the admission policies cost the API server, by the number of annotations
//! of the pod. The cost is what its own histogram says for the plugin that runs policies, so it
//! contains all policies of the cluster. A refusal is compared with the same write before there were
//! policies, and with one policy that never applies, as the client sees all three: for each policy the
//! API server converts both pods before it reads the first condition.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Options;
use super::report::{Bar, Report, Row};
use e2e::api::{Api, Refused};
use e2e::cluster::Cluster;
use e2e::progress::say;
use e2e::wait::{Probe, until};
use e2e::{Config, install, paths};

const SPACE: &str = "admission";
const NODE: &str = "node1";
const KEY: &str = "tkestack.io/portmapping";
/// Annotations of a pod, ours included. A pod that asks may have 1,000.
const COUNTS: [usize; 4] = [1, 100, 500, 1_000];
/// As many annotations as the API server takes, roughly: 256 KiB.
const MOST: usize = 40_000;
const WRITES: u32 = 200;
/// Writes of a pod with the most annotations: each takes the API server a hundred times as long.
const LARGE_WRITES: u32 = 20;
const LIMIT: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(100);
/// For an accepted write with 1,000 annotations, in ms.
const BAR: f64 = 5.0;
/// For twice the annotations: 2 times the cost is linear, 4 times is quadratic.
const GROWTH_BAR: f64 = 3.0;
/// For a refusal, in times what one policy costs that never applies. Of ours two read the pod, and one of
/// them reads it once more or twice to say why it refuses.
const REFUSAL_BAR: f64 = 4.0;
/// All policies that read pods.
const POLICIES: [&str; 4] = [
    "policy-users",
    "policy-enforcer",
    "policy-hints",
    "policy-templates",
];
/// A policy that reads pods and never applies.
const NEVER: &str = "never";
/// The sum of the time that policies took for updates, in seconds.
const SUM: &str = "apiserver_admission_controller_admission_duration_seconds_sum{name=\"ValidatingAdmissionPolicy\",operation=\"UPDATE\"";

/// Who writes, and what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Write {
    /// A user asks for host ports, and takes the request back.
    Request,
    /// The enforcer publishes a result.
    Result,
    /// A user changes an annotation of another program.
    Other,
}

impl Write {
    const ALL: [Self; 3] = [Self::Request, Self::Result, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Request => "a user's request",
            Self::Result => "a result",
            Self::Other => "another annotation",
        }
    }

    /// Returns the change: no two in a row are the same.
    fn change(self, number: u32) -> Value {
        let (even, port) = (number.is_multiple_of(2), 20_000 + number);
        let result = json!([{ "hostPort": port, "containerPort": 9040, "protocol": "TCP", "podName": "p", "podIP": "10.244.1.7" }]);
        let (key, value) = match self {
            Self::Request if even => (KEY, json!("")),
            Self::Request => (KEY, json!(r#"[{"containerPort":9040}]"#)),
            Self::Result => (KEY, json!(result.to_string())),
            Self::Other => ("0", json!(port.to_string())),
        };
        json!({ "metadata": { "annotations": { key: value } } })
    }
}

struct Bench {
    cluster: Cluster,
    user: Api,
    enforcer: Api,
}

pub(super) fn run(options: &Options) -> Result<Report> {
    let writes = options.rounds.map_or(WRITES, u32::from);
    let cluster = Cluster::start(&Config {
        name: format!("admission-{}", std::process::id()),
        // no kubelet writes at the same time
        nodes: 0,
        product: false,
        ..Config::default()
    })?;
    let bench = Bench::furnish(cluster)?;
    say(format_args!("{writes} writes each"));
    let bare = Write::ALL.map(|write| bench.time_large(write));
    bench.add_never()?;
    let never = Write::ALL.map(|write| bench.time_large(write));
    bench.remove_never()?;
    bench.apply(&POLICIES)?;
    until("the policies to be in force", LIMIT, POLL, || {
        let path = path("count-1", "?dryRun=All");
        Ok(match bench.user.patch(&path, &Write::Result.change(0)) {
            Ok(_) => Probe::Missing("a forged result is accepted".into()),
            Err(error) => refusal(error).map_or(Probe::Missing("no refusal".into()), |_message| {
                Probe::Done(())
            }),
        })
    })?;
    let mut report = Report::default();
    for write in Write::ALL {
        let mut costs = Vec::new();
        for count in COUNTS {
            let cost = bench.cost(write, count, writes)?;
            costs.push(cost);
            let name = format!("{}, {count} annotations: time in policies", write.name());
            let bar = if count == 1_000 {
                Bar::AtMost(BAR)
            } else {
                Bar::None
            };
            report.push(Row::new(name, "ms", cost).bar(bar));
        }
        let [none, _, half, all] = costs[..] else {
            bail!("{} figures", costs.len());
        };
        let growth = (all - none) / (half - none);
        let name = format!("{}, growth from 500 to 1,000 annotations", write.name());
        report.push(Row::new(name, "x", growth).bar(Bar::AtMost(GROWTH_BAR)));
    }
    let bare = bare.into_iter().collect::<Result<Vec<f64>>>()?;
    let never = never.into_iter().collect::<Result<Vec<f64>>>()?;
    // it does not depend on the write
    let one = (never.iter().sum::<f64>() - bare.iter().sum::<f64>()) / 3.0;
    for (write, bare) in Write::ALL.into_iter().zip(bare) {
        let with = bench.time_large(write)?;
        let name = format!("{}, {MOST} annotations", write.name());
        report.push(
            Row::new(format!("{name}: whole write"), "ms", with).against(
                "no policies",
                bare,
                with / bare,
            ),
        );
        let ours = with - bare;
        report.push(
            Row::new(format!("{name}: more than without policies"), "ms", ours)
                .against("one that never applies", one, ours / one)
                .bar(Bar::AtMostRatio(REFUSAL_BAR)),
        );
    }
    Ok(report)
}

impl Bench {
    /// Accounts, a node without a kubelet, and pods on it.
    fn furnish(cluster: Cluster) -> Result<Self> {
        let user = Api::new(cluster.kubeconfig())?;
        let mut bench = Self {
            enforcer: user.clone(),
            cluster,
            user,
        };
        bench.apply(&["namespace", "rbac"])?;
        bench.cluster.kubectl_run(["create", "namespace", SPACE])?;
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } });
        bench.user.create("/api/v1/nodes", &node)?;
        let own = json!({ "metadata": { "name": "enforcer" }, "spec": { "serviceAccountName": "enforcer" } });
        bench.create(install::NAMESPACE, own)?;
        let token = [
            "--bound-object-kind=Pod",
            "--bound-object-name=enforcer",
            "--namespace",
            install::NAMESPACE,
        ];
        let token = [&["create", "token", "enforcer"], &token[..]].concat();
        let token = bench.cluster.kubectl_run(token)?;
        bench.enforcer = bench.user.with_token(token.trim());
        for count in COUNTS.into_iter().chain([MOST]) {
            // room for the annotation that is written
            let keys = (0..count - 1).map(|key| (format!("{key:x}"), json!("")));
            let notes: serde_json::Map<_, _> = keys.collect();
            let metadata = json!({ "name": format!("count-{count}"), "annotations": notes });
            bench.create(SPACE, json!({ "metadata": metadata, "spec": {} }))?;
        }
        Ok(bench)
    }

    fn apply(&self, files: &[&str]) -> Result<()> {
        let base = paths::manifests().join("base");
        let files = files.iter().map(|file| base.join(format!("{file}.yaml")));
        let files = files.map(|file| format!("--filename={}", file.display()));
        let apply = ["apply", "--server-side"].map(str::to_owned);
        self.cluster
            .kubectl_run(apply.into_iter().chain(files))
            .map(drop)
    }

    /// Adds the policy that never applies, and waits until it is in force.
    fn add_never(&self) -> Result<()> {
        let spec = json!({
            "failurePolicy": "Fail",
            "matchConstraints": { "resourceRules": [{ "apiGroups": [""], "apiVersions": ["v1"],
                "operations": ["UPDATE"], "resources": ["pods", "pods/*"] }] },
            "matchConditions": [{ "name": "never", "expression": "request.userInfo.username == ''" }],
            "validations": [{ "expression": "false" }],
        });
        self.add(
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            &spec,
        )?;
        let spec = json!({ "policyName": NEVER, "validationActions": ["Deny"] });
        self.add(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            &spec,
        )?;
        until("the first policy to be in force", LIMIT, POLL, || {
            let before = self.policies_seconds()?;
            self.write(Write::Other, COUNTS[0], 0)?;
            // without policies the plugin takes microseconds
            Ok(if self.policies_seconds()? - before > 100e-6 {
                Probe::Done(())
            } else {
                Probe::Missing("policies take no time".into())
            })
        })
    }

    fn add(&self, kind: &str, plural: &str, spec: &Value) -> Result<()> {
        let object = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": { "name": NEVER }, "spec": spec });
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}");
        self.user.create(&path, &object).map(drop)
    }

    fn remove_never(&self) -> Result<()> {
        let kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings";
        self.cluster.kubectl_run(["delete", kinds, NEVER]).map(drop)
    }

    fn create(&self, namespace: &str, mut pod: Value) -> Result<()> {
        pod["spec"]["nodeName"] = json!(NODE);
        pod["spec"]["containers"] = json!([{ "name": "c", "image": "none" }]);
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        until("a pod to be created", LIMIT, POLL, || {
            // the namespace's service account takes a moment
            Ok(match self.user.create(&path, &pod) {
                Ok(_) => Probe::Done(()),
                Err(error) => Probe::Missing(format!("{error:#}")),
            })
        })
    }

    fn write(&self, write: Write, count: usize, number: u32) -> Result<Value> {
        let (api, subresource) = match write {
            Write::Request | Write::Other => (&self.user, ""),
            Write::Result => (&self.enforcer, "/status"),
        };
        api.patch(
            &path(&format!("count-{count}"), subresource),
            &write.change(number),
        )
    }

    /// Returns the mean time in policies of an accepted write, in ms.
    fn cost(&self, write: Write, count: usize, writes: u32) -> Result<f64> {
        let before = self.policies_seconds()?;
        for number in 0..writes {
            self.write(write, count, number)?;
        }
        let took = self.policies_seconds()? - before;
        ensure!(took > 0.0, "no time was spent in policies");
        Ok(took * 1_000.0 / f64::from(writes))
    }

    fn policies_seconds(&self) -> Result<f64> {
        let metrics = self.cluster.kubectl_run(["get", "--raw", "/metrics"])?;
        let lines = metrics.lines().filter(|line| line.starts_with(SUM));
        let values = lines.map(|line| line.rsplit(' ').next().unwrap_or_default());
        values
            .map(|value| value.parse::<f64>().context("a sum that is no number"))
            .sum()
    }

    /// Returns the mean time of a write of the pod with the most annotations, accepted or refused by a
    /// policy, in ms.
    fn time_large(&self, write: Write) -> Result<f64> {
        let mut total = Duration::ZERO;
        for number in 0..=LARGE_WRITES {
            let start = Instant::now();
            if let Err(error) = self.write(write, MOST, number) {
                refusal(error)?;
            }
            // the first one opens the connection
            if number > 0 {
                total += start.elapsed();
            }
        }
        Ok(total.as_secs_f64() * 1_000.0 / f64::from(LARGE_WRITES))
    }
}

/// The path of a pod, and what follows it.
fn path(pod: &str, rest: &str) -> String {
    format!("/api/v1/namespaces/{SPACE}/pods/{pod}{rest}")
}

/// Returns the message if a policy refused; any other failure is an error.
fn refusal(error: anyhow::Error) -> Result<String> {
    match error.downcast_ref::<Refused>() {
        Some(refused) if refused.message.contains("ValidatingAdmissionPolicy") => {
            Ok(refused.message.clone())
        }
        _ => Err(error),
    }
}
