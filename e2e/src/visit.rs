//! Runs a thread in the network namespace of a host.

use std::fs::File;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::Cluster;

/// Runs `task` on a thread in the network of `host`: `client`, `node1`, ... Threads that it starts are
/// there as well. In a cluster that this harness did not start, this machine is the client.
pub fn at<T: Send + 'static>(
    cluster: &Cluster,
    host: &str,
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<Result<T>>> {
    let network = if cluster.is_ours() {
        let path = format!("/proc/{}/ns/net", cluster.pid(host)?);
        Some(File::open(&path).with_context(|| format!("open {path}"))?)
    } else if host == "client" {
        None
    } else {
        bail!("{host} cannot be entered: the cluster was not started by this harness")
    };
    Ok(thread::spawn(move || {
        if let Some(network) = network {
            setns(network, CloneFlags::CLONE_NEWNET).context("enter the network of a host")?;
        }
        Ok(task())
    }))
}

/// Runs `task` in the network of a process, such as one of a pod, and waits for it.
pub fn run_beside<T: Send + 'static>(
    pid: u32,
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let path = format!("/proc/{pid}/ns/net");
    let network = File::open(&path).with_context(|| format!("open {path}"))?;
    let inside = thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).context("enter the network of a process")?;
        Ok(task())
    });
    inside
        .join()
        .map_err(|_| anyhow!("a thread in the network of process {pid} panicked"))?
}

/// Runs `task` at `host` and waits for it.
pub fn run_at<T: Send + 'static>(
    cluster: &Cluster,
    host: &str,
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    at(cluster, host, task)?
        .join()
        .map_err(|_| anyhow!("a thread at {host} panicked"))?
}
