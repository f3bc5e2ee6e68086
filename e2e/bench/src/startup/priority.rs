//! Sets priorities, because one machine runs a whole cluster and the process that measures it.

use std::{fs, io};

use anyhow::{Context, Result};
use rustix::process::{Pid, setpriority_process};

use e2e::cluster::Cluster;

/// The programs that a write to the API server waits for.
const PROGRAMS: [&str; 2] = ["kube-apiserver", "etcd"];
/// Nine times the scheduler weight of a process of niceness 0.
const NICENESS: i32 = -10;

/// Raises the priority of this thread, so that it records when an event happens, not when the
/// thread is scheduled.
pub(super) fn favour_this_thread() -> Result<()> {
    favour(None).context("raise the priority of the measuring thread")
}

/// Raises the priority of the API server and etcd. In a real cluster they have their own cores;
/// here they share two cores with the measured node.
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
        // each thread has its own niceness, which threads that it starts inherit
        for thread in threads.into_iter().filter_map(Pid::from_raw) {
            favour(Some(thread)).with_context(|| format!("raise the priority of {program}"))?;
        }
    }
    Ok(())
}

fn favour(thread: Option<Pid>) -> io::Result<()> {
    setpriority_process(thread, NICENESS)?;
    Ok(())
}
