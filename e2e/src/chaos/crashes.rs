//! Programs of the product that end although no fault has ended them. The kubelet starts them again, so without this
//! a crash would look like a fault that was survived.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::record::{Record, count};
use super::users::BAD_ARGS;
use crate::api::{Api, WatchEvent};
use crate::install::NAMESPACE as SYSTEM;

/// Exit codes of a program that crashes: a panic, SIGILL, SIGABRT, SIGBUS, SIGFPE and SIGSEGV. While its pod is being
/// deleted, a program may also report another error, such as a call that did not end in time.
const CRASHED: [i64; 6] = [101, 132, 134, 135, 136, 139];
/// The kubelet's reason for a container that is not there any more, as after a power cut.
const LOST: &str = "ContainerStatusUnknown";

/// Watches the product's pods; the thread ends with the process.
pub(super) fn watch(kubeconfig: &Path, record: &Arc<Record>) -> Result<()> {
    let api = Api::new(kubeconfig)?;
    let mut crashes = Crashes {
        record: Arc::clone(record),
        running: BTreeMap::new(),
        first_seen: BTreeMap::new(),
        ended: BTreeSet::new(),
    };
    let path = format!("/api/v1/namespaces/{SYSTEM}/pods");
    thread::Builder::new()
        .name("crashes".to_owned())
        .spawn(move || {
            api.follow(
                &path,
                || false,
                |change| match change {
                    WatchEvent::All(pods) => pods.iter().for_each(|pod| crashes.update(pod)),
                    WatchEvent::Applied(pod) | WatchEvent::Deleted(pod) => crashes.update(&pod),
                },
            );
        })
        .context("start a thread")?;
    Ok(())
}

struct Crashes {
    record: Arc<Record>,
    /// The running container by uid and name.
    running: BTreeMap<(String, String), String>,
    /// How often the node of a container had been rebooted when it was first seen.
    first_seen: BTreeMap<String, u64>,
    /// Containers whose end is known.
    ended: BTreeSet<String>,
}

impl Crashes {
    fn update(&mut self, pod: &Value) {
        let status = &pod["status"];
        let lists = ["initContainerStatuses", "containerStatuses"];
        for container in lists
            .iter()
            .filter_map(|list| status[list].as_array())
            .flatten()
        {
            self.update_container(pod, container);
        }
    }

    fn update_container(&mut self, pod: &Value, container: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let node = text(&pod["spec"]["nodeName"]);
        let key = (text(&pod["metadata"]["uid"]), text(&container["name"]));
        let reboots = self.record.reboots(&node);
        let mut ends = Vec::new();
        for state in [&container["lastState"], &container["state"]] {
            let end = &state["terminated"];
            if end.is_object() {
                let restarts = &container["restartCount"];
                // a lost container has no id
                let id = match text(&end["containerID"]) {
                    id if id.is_empty() => format!("{key:?} {restarts} {}", end["finishedAt"]),
                    id => id,
                };
                ends.push((id, end.clone()));
            }
        }
        let now = text(&container["containerID"]);
        if container["state"]["running"].is_object() {
            match self.running.get(&key) {
                Some(before) if *before == now => {}
                before => {
                    // the report of its end may be lost with an API server
                    ends.extend(before.map(|id| (id.clone(), json!("not reported"))));
                    count(&self.record.starts);
                    self.first_seen.insert(now.clone(), reboots);
                    self.running.insert(key.clone(), now);
                }
            }
        }
        for (id, end) in ends {
            // that of a lost container is not known
            let then = self.first_seen.get(&id).copied().unwrap_or_default();
            let rebooted = then < reboots;
            let lost = end["reason"] == LOST || end == "not reported";
            let explained = rebooted && lost
                || self
                    .record
                    .is_killed(id.rsplit('/').next().unwrap_or_default())
                || is_wrong_on_purpose(pod, &key.1)
                || is_stopped(pod, &end);
            if self.ended.insert(id) && !explained {
                self.record.violation(format!(
                    "crash: {} of {} on {node} ended by itself: {end}",
                    key.1, pod["metadata"]["name"]
                ));
            }
        }
    }
}

/// Whether a fault has given it flags with which it cannot start.
fn is_wrong_on_purpose(pod: &Value, container: &str) -> bool {
    let containers = pod["spec"]["containers"].as_array();
    let mut containers = containers.into_iter().flatten();
    containers.any(|one| one["name"] == container && one["args"] == json!(BAD_ARGS))
}

/// Whether the kubelet has ended it, because its pod is being deleted.
fn is_stopped(pod: &Value, end: &Value) -> bool {
    let code = end["exitCode"].as_i64();
    !pod["metadata"]["deletionTimestamp"].is_null()
        && code.is_some_and(|code| !CRASHED.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "containerd://1";

    fn crashes() -> Crashes {
        Crashes {
            record: Arc::default(),
            running: BTreeMap::new(),
            first_seen: BTreeMap::new(),
            ended: BTreeSet::new(),
        }
    }

    fn pod(container: &Value) -> Value {
        json!({
            "metadata": { "name": "enforcer-1", "uid": "u" },
            "spec": { "nodeName": "node1", "containers": [{ "name": "enforcer", "args": ["run"] }] },
            "status": { "containerStatuses": [container] },
        })
    }

    fn running(id: &str) -> Value {
        json!({ "name": "enforcer", "containerID": id, "restartCount": 0,
            "state": { "running": { "startedAt": "then" } } })
    }

    fn restarted(code: i64) -> Value {
        let mut container = running("containerd://2");
        container["lastState"]["terminated"] = json!({ "containerID": ID, "exitCode": code });
        container
    }

    fn violations(of: &Crashes) -> usize {
        of.record.violations().len()
    }

    #[test]
    fn a_program_that_ends_by_itself_is_a_violation_and_once() {
        for code in [0, 101, 137] {
            let mut crashes = crashes();
            crashes.update(&pod(&running(ID)));
            assert_eq!(violations(&crashes), 0);
            crashes.update(&pod(&restarted(code)));
            crashes.update(&pod(&restarted(code)));
            assert_eq!(violations(&crashes), 1, "{code}");
        }
    }

    #[test]
    fn an_end_that_is_not_reported_is_a_violation() {
        let mut crashes = crashes();
        crashes.update(&pod(&running(ID)));
        crashes.update(&pod(&running("containerd://2")));
        assert_eq!(violations(&crashes), 1);
    }

    #[test]
    fn a_program_that_a_fault_has_ended_is_none() {
        let mut killed = crashes();
        killed.record.kill("1".to_owned());
        killed.update(&pod(&running(ID)));
        killed.update(&pod(&restarted(137)));
        let mut wrong = crashes();
        let mut new = pod(&restarted(2));
        new["spec"]["containers"][0]["args"] = json!(BAD_ARGS);
        wrong.update(&new);
        assert_eq!(violations(&killed) + violations(&wrong), 0);
    }

    #[test]
    fn a_program_of_a_deleted_pod_may_end_and_not_panic() {
        for (code, expected) in [(0, 0), (1, 0), (137, 0), (101, 1), (134, 1)] {
            let mut crashes = crashes();
            let mut deleted = pod(&restarted(code));
            deleted["metadata"]["deletionTimestamp"] = json!("now");
            crashes.update(&deleted);
            assert_eq!(violations(&crashes), expected, "{code}");
        }
    }

    #[test]
    fn a_container_that_a_reboot_has_ended_is_none_until_the_next_one() {
        let mut crashes = crashes();
        crashes.update(&pod(&running(ID)));
        crashes.record.reboot("node1");
        crashes.update(&pod(&running("containerd://2")));
        assert_eq!(violations(&crashes), 0);
        crashes.update(&pod(&running("containerd://3")));
        assert_eq!(violations(&crashes), 1);
    }
}
