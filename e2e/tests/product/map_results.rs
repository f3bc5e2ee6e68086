//! Which of the runtime's CNI results count, and what if they are lost?

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use e2e::Cluster;
use serde_json::{Value, json};

use crate::map_start::end_sandbox;
use crate::support::outside::{Way, is_refused};
use crate::support::pods::{
    MappedPort, annotated, condition, entries, is_true, mapped_pod, on_node, pod,
};
use crate::support::space::Space;
use crate::support::{ANNOTATION, alone, eventually, shared};

const NODE: &str = "node1";
/// Its enforcer has read no result from the future: later ones count as newer than that.
const OTHER_NODE: &str = "node2";

#[test]
fn a_mapping_ends_and_comes_back_with_the_runtimes_result() -> Result<()> {
    shared(|cluster| {
        Space::with(cluster, "result", |space| {
            let (web, entry) = serving(space, NODE)?;
            let endpoint = space.endpoint(&web, &entry)?;
            let result = result_of(cluster, NODE, uid(&web)?)?;
            let text = fs::read(&result)?;
            // as the runtime does when the address is released; the pod itself still runs
            fs::remove_file(&result)?;
            eventually("the host port to refuse connections", || {
                ensure!(is_refused(cluster, endpoint)?, "{endpoint} still answers");
                Ok(())
            })?;
            fs::write(&result, text)?;
            eventually("the pod to be reached again", || {
                space.answers(&web, &entry, Way::Tcp)
            })
        })
    })
}

#[test]
fn a_pod_whose_result_was_wiped_has_its_port_again_and_is_not_true_before() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "result-wiped", |space| {
            let (web, _) = serving(space, NODE)?;
            for result in results(cluster, NODE)? {
                fs::remove_file(result)?;
            }
            mapped_again(space, &web, Way::Tcp)
        })
    })
}

#[test]
fn a_result_that_an_unknown_pod_left_takes_no_living_pods_address() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "result-left", |space| {
            let (web, entry) = serving(space, OTHER_NODE)?;
            let result = result_of(cluster, OTHER_NODE, uid(&web)?)?;
            let unknown = "00000000-0000-4000-8000-000000000000";
            let hour_ago = SystemTime::now() - Duration::from_hours(1);
            let left_behind = leave_behind(&result, unknown, hour_ago)?;
            // the enforcer has read it by now, because it has mapped a later pod
            space.create(&on_node(mapped_pod("next"), OTHER_NODE))?;
            space.ready("next")?;
            let outcome = space.answers(&web, &entry, Way::Tcp);
            fs::remove_file(left_behind)?;
            outcome
        })
    })
}

#[test]
fn a_stale_result_from_before_the_clock_was_set_back_is_ignored() -> Result<()> {
    alone(|cluster| {
        Space::with(cluster, "set-back", |space| {
            let (before, entry) = serving(space, NODE)?;
            let uid = uid(&before)?;
            let result = result_of(cluster, NODE, uid)?;
            let in_an_hour = SystemTime::now() + Duration::from_hours(1);
            let left_behind = leave_behind(&result, uid, in_an_hour)?;
            // the enforcer has read it by now, because it has mapped a later pod
            space.create(&on_node(mapped_pod("next"), NODE))?;
            space.ready("next")?;
            end_sandbox(cluster, NODE, uid)?;
            let outcome = eventually("the pod to be reached at its new address", || {
                let after = space.pod("web")?;
                let again = entries(&after)?.remove(0);
                ensure!(
                    after["status"]["podIP"] != before["status"]["podIP"],
                    "still at {}",
                    after["status"]["podIP"]
                );
                ensure!(
                    after["status"]["podIP"] == json!(again.pod_ip),
                    "published for {}",
                    again.pod_ip
                );
                ensure!(again.host_port == entry.host_port, "the port moved");
                space.answers(&after, &again, Way::Tcp)
            });
            fs::remove_file(left_behind)?;
            outcome
        })
    })
}

/// Waits until a pod whose result was removed is mapped to the same ports again, and was not True before.
pub(crate) fn mapped_again(space: &Space<'_>, before: &Value, way: Way) -> Result<()> {
    let name = before["metadata"]["name"].as_str().context("no name")?;
    let changed = |pod: &Value| {
        condition(pod, ANNOTATION)?
            .get("lastTransitionTime")
            .cloned()
    };
    eventually("the condition to be True a second time", || {
        let after = space.pod(name)?;
        ensure!(changed(&after) != changed(before), "True all the time");
        ensure!(
            is_true(&after, ANNOTATION),
            "{}",
            after["status"]["conditions"]
        );
        let mapped = entries(&after)?;
        ensure!(mapped == entries(before)?, "{mapped:?}");
        space.answers(&after, &mapped[0], way)
    })
}

/// A pod `web` that answers at its host port, and that port.
fn serving(space: &Space<'_>, node: &str) -> Result<(Value, MappedPort)> {
    let ports = json!([{ "containerPort": 9040 }]);
    let web = annotated(pod("web", &["--tcp", "9040"], &ports), "");
    space.create(&on_node(web, node))?;
    let web = space.ready("web")?;
    let entry = entries(&web)?.remove(0);
    space.answers(&web, &entry, Way::Tcp)?;
    Ok((web, entry))
}

fn uid(pod: &Value) -> Result<&str> {
    pod["metadata"]["uid"].as_str().context("no uid")
}

/// Writes a second result next to one, for another sandbox of this pod.
fn leave_behind(result: &Path, uid: &str, written: SystemTime) -> Result<PathBuf> {
    let mut left: Value = serde_json::from_slice(&fs::read(result)?)?;
    left["containerId"] = json!("left-behind");
    let arguments = left["cniArgs"].as_array_mut().context("no cniArgs")?;
    for argument in arguments {
        if argument[0] == "K8S_POD_UID" {
            argument[1] = json!(uid);
        }
    }
    let path = result.with_file_name("left-behind-eth0");
    let mut file = File::create(&path)?;
    file.write_all(left.to_string().as_bytes())?;
    // before it is closed, and so before it is read
    file.set_modified(written)?;
    Ok(path)
}

/// The files of the runtime's CNI results.
fn results(cluster: &Cluster, node: &str) -> Result<Vec<PathBuf>> {
    let folder = format!("/proc/{}/root/var/lib/cni/results", cluster.pid(node)?);
    let files = fs::read_dir(&folder).with_context(|| format!("list {folder}"))?;
    files.map(|file| Ok(file?.path())).collect()
}

/// The runtime's CNI result of a pod.
pub(crate) fn result_of(cluster: &Cluster, node: &str, uid: &str) -> Result<PathBuf> {
    for path in results(cluster, node)? {
        let name = path.to_string_lossy();
        if name.ends_with("-eth0") && fs::read_to_string(&path).is_ok_and(|t| t.contains(uid)) {
            return Ok(path);
        }
    }
    bail!("no CNI result of pod {uid} on {node}")
}
