//! What comes before all else on a machine that stands for a whole cluster and its observer.

use std::{fs, io};

use anyhow::{Context, Result};
use portmapping_enforcer::scheduling::use_short_slices;
use rustix::process::{Pid, setpriority_process};

use e2e::cluster::Cluster;

/// What a write waits for.
const PROGRAMS: [&str; 2] = ["kube-apiserver", "etcd"];
/// Nine times the weight of everybody else.
const NICENESS: i32 = -10;

/// Whoever notes a time from now on in this thread notes when something came, not when it had a turn.
pub(super) fn favour_this_thread() -> Result<()> {
    favour(None).context("put the observer before others")
}

/// The API server as if it had cores of its own, as in any cluster: it shares two with the node that
/// is looked at, and is else busy with what that node does rather than with what is asked of it.
pub(super) fn favour_the_api_server(cluster: &Cluster) -> Result<()> {
    for program in PROGRAMS {
        let folder = format!(
            "/proc/{}/task",
            cluster.component("control-plane", program)?
        );
        let mut threads = Vec::new();
        for thread in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
            threads.extend(thread?.file_name().to_string_lossy().parse::<i32>().ok());
        }
        // each thread has its own, which those that it starts inherit
        for thread in threads.into_iter().filter_map(Pid::from_raw) {
            favour(Some(thread)).with_context(|| format!("put {program} before others"))?;
        }
    }
    Ok(())
}

fn favour(thread: Option<Pid>) -> io::Result<()> {
    setpriority_process(thread, NICENESS)?;
    use_short_slices(thread)
}
