//! The start of one pod as four observers recorded it, with the same clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::rules::{Family, Rule};
use e2e::cluster::Cluster;
use e2e::starts::Call;

/// When a write arrived at the API server, and when it was done.
type Patch = (SystemTime, SystemTime);

const ENFORCER: &str = "system:serviceaccount:portmapping-system:enforcer";
/// The folder in which libcni stores results.
const RESULTS: &str = "var/lib/cni/results";

/// The start of one pod.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    result: SystemTime,
    /// When the last rule of the pod was made, in any address family.
    rule: SystemTime,
    /// When the API server received the patch.
    asked: SystemTime,
    published: SystemTime,
    /// The kubelet's first write to the status of the same pod after that.
    by_kubelet: Patch,
    begun: SystemTime,
    answered: SystemTime,
}

impl Trace {
    pub(super) fn result_to_rule(&self) -> f64 {
        milliseconds(self.result, self.rule)
    }

    pub(super) fn result_to_published(&self) -> f64 {
        milliseconds(self.result, self.published)
    }

    /// Returns the time that the API server took for the patch.
    pub(super) fn patch(&self) -> f64 {
        milliseconds(self.asked, self.published)
    }

    /// Returns the time that the API server took for the kubelet's write.
    pub(super) fn patch_of_kubelet(&self) -> f64 {
        milliseconds(self.by_kubelet.0, self.by_kubelet.1)
    }

    pub(super) fn result_to_words(&self) -> f64 {
        milliseconds(self.result, self.begun)
    }

    /// Returns how long before the announcement the rule was made.
    pub(super) fn rule_to_words(&self) -> f64 {
        milliseconds(self.rule, self.begun)
    }

    pub(super) fn words_to_answer(&self) -> f64 {
        milliseconds(self.begun, self.answered)
    }

    pub(super) fn is_late(&self) -> bool {
        self.rule > self.begun
    }

    pub(super) fn is_published_late(&self) -> bool {
        self.published > self.begun
    }
}

/// Shows the times of one start; for a slow start they show which part was slow.
impl fmt::Display for Trace {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = milliseconds(self.result, self.asked);
        write!(
            to,
            "rule {:.1} ms, patch at the API server {asked:.1} ms, published {:.1} ms, first words {:.1} ms",
            self.result_to_rule(),
            self.result_to_published(),
            self.result_to_words(),
        )
    }
}

/// A pod's CNI result.
struct Written {
    at: SystemTime,
    uid: String,
    families: BTreeSet<Family>,
}

/// Returns the milliseconds from `from` to `to`; negative if `to` is earlier.
fn milliseconds(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(after) => after.as_secs_f64() * 1e3,
        Err(before) => -before.duration().as_secs_f64() * 1e3,
    }
}

/// Combines the observations of all pods that announced themselves.
pub(super) fn join(
    cluster: &Cluster,
    node: &str,
    space: &str,
    calls: &[Call],
    rules: &[Rule],
) -> Result<Vec<Trace>> {
    let results = results(cluster, node, space)?;
    let audit = Audit::read(cluster)?;
    let published = audit.patches(space, ENFORCER)?;
    let by_kubelet = audit.patches(space, &format!("system:node:{node}"))?;
    let trace = |call: &Call| {
        let pod = &call.pod;
        let written = results
            .get(pod)
            .with_context(|| format!("{node} has no CNI result of {pod}"))?;
        let result = written.at;
        let rule_of = |family: &Family| {
            let mut later = rules.iter().filter(|rule| rule.seen >= written.at);
            let first = later.find(|rule| rule.family == *family && rule.owner == written.uid);
            let first = first.map(|rule| rule.seen);
            first.with_context(|| format!("no {family:?} rule of {pod} was seen"))
        };
        let rules: Vec<SystemTime> = written
            .families
            .iter()
            .map(rule_of)
            .collect::<Result<_>>()?;
        let rule = rules.into_iter().max();
        let patch = |patches: &BTreeMap<String, Vec<Patch>>| {
            let mut patches = patches.get(pod).into_iter().flatten();
            let patch = patches.find(|(_, done)| *done >= result);
            let patch = patch.copied();
            patch.with_context(|| format!("no patch of {pod} in the audit log"))
        };
        let (asked, published) = patch(&published)?;
        anyhow::Ok(Trace {
            result,
            rule: rule.with_context(|| format!("{pod} has no address"))?,
            asked,
            published,
            by_kubelet: patch(&by_kubelet)?,
            begun: call.begun,
            answered: call.answered,
        })
    };
    calls.iter().map(trace).collect()
}

/// Returns how many of 100 publications the API server refused because the pod had changed since it was
/// read.
pub(super) fn conflicts(cluster: &Cluster, space: &str) -> Result<f64> {
    let audit = Audit::read(cluster)?;
    let (mut all, mut conflicts) = (0_u32, 0_u32);
    for event in audit.writes(space, ENFORCER) {
        all += 1;
        conflicts += u32::from(event["responseStatus"]["code"] == 409);
    }
    ensure!(all > 0, "the audit log has no publication");
    Ok(100.0 * f64::from(conflicts) / f64::from(all))
}

/// Returns the CNI results of the pods of a namespace by name.
fn results(cluster: &Cluster, node: &str, space: &str) -> Result<BTreeMap<String, Written>> {
    let folder = format!("/proc/{}/root/{RESULTS}", cluster.pid(node)?);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let path = entry?.path();
        if !path.to_string_lossy().ends_with("-eth0") {
            continue;
        }
        let (Ok(text), Ok(metadata)) = (fs::read(&path), fs::metadata(&path)) else {
            // the pod was deleted just now
            continue;
        };
        let result: Value = serde_json::from_slice(&text).context("parse a CNI result")?;
        let argument = |key: &str| {
            let pairs = result["cniArgs"].as_array()?.iter();
            let mut values = pairs.filter(|pair| pair[0] == key);
            values.next()?[1].as_str().map(str::to_owned)
        };
        if let (Some(name), true) = (
            argument("K8S_POD_NAME"),
            argument("K8S_POD_NAMESPACE").as_deref() == Some(space),
        ) {
            let ips = result["result"]["ips"].as_array().into_iter().flatten();
            let ips = ips.filter_map(|ip| ip["address"].as_str());
            let written = Written {
                at: metadata.modified().context("a file without a time")?,
                uid: argument("K8S_POD_UID").context("a result without a uid")?,
                families: ips.map(Family::of).collect(),
            };
            found.insert(name, written);
        }
    }
    Ok(found)
}

/// The API server's audit log.
struct Audit(Vec<Value>);

impl Audit {
    fn read(cluster: &Cluster) -> Result<Self> {
        let path = cluster.audit_log()?;
        let log = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        // the last line may be incomplete
        let lines = log.split(|byte| *byte == b'\n');
        let events = lines.filter_map(|line| serde_json::from_slice(line).ok());
        Ok(Self(events.collect()))
    }

    /// All writes of a user to the status of pods that were answered.
    fn writes(&self, space: &str, user: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |event| {
            let target = &event["objectRef"];
            let of_status = event["verb"] == "patch" && target["subresource"] == "status";
            let theirs = event["user"]["username"] == user && target["namespace"] == space;
            theirs && of_status && event["stage"] == "ResponseComplete"
        })
    }

    /// Returns when the writes of a user to each pod's status arrived, and when they were done.
    fn patches(&self, space: &str, user: &str) -> Result<BTreeMap<String, Vec<Patch>>> {
        let mut found: BTreeMap<String, Vec<Patch>> = BTreeMap::new();
        for event in self.writes(space, user) {
            let target = &event["objectRef"];
            if event["responseStatus"]["code"] != 200 {
                continue;
            }
            let time = |field: &str| time(event[field].as_str());
            let times = (time("requestReceivedTimestamp")?, time("stageTimestamp")?);
            let name = target["name"].as_str().context("a patch of no pod")?;
            found.entry(name.to_owned()).or_default().push(times);
        }
        Ok(found)
    }
}

fn time(text: Option<&str>) -> Result<SystemTime> {
    let time: Timestamp = text
        .context("no time in the audit log")?
        .parse()
        .context("parse a time of the audit log")?;
    let micros = u64::try_from(time.as_microsecond()).context("a time before 1970")?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_micros(micros))
}
