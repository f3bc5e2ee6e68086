//! The API server as if it had cores of its own, as in any cluster: it shares two with the node that
//! is looked at, and is else busy with what that node does rather than with what is asked of it.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Pid, setpriority_process};

use crate::cluster::Cluster;

/// What a write waits for.
const PROGRAMS: [&str; 2] = ["kube-apiserver", "etcd"];
/// Nine times the weight of everybody else.
const NICENESS: i32 = -10;

/// Puts these programs before all others.
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
        // each thread has a niceness of its own, which those that it starts inherit
        for thread in threads.into_iter().filter_map(Pid::from_raw) {
            setpriority_process(Some(thread), NICENESS)
                .with_context(|| format!("put {program} before others"))?;
        }
    }
    Ok(())
}
