//! Faults of a cluster: nodes that lose power, programs that end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::mounts::RUN;
use super::{Cluster, components, launch, pki};
use crate::process;
use crate::wait::{Probe, until};

const CONTROL_PLANE: &str = "control-plane";
/// How long a program that has ended may take to start again.
const RESTARTED: Duration = Duration::from_secs(10);
/// How long a killed program may take to end: an API server on a busy machine takes a second and more.
const ENDED: Duration = Duration::from_secs(30);
/// How long a copy of etcd's files may take.
const COPIED: Duration = Duration::from_secs(30);
/// Between two looks for it.
const POLL: Duration = Duration::from_millis(100);

impl Cluster {
    /// Kills every process of a node at once, as a power cut does. None of its state remains.
    pub fn kill_node(&self, index: u8) -> Result<()> {
        launch::kill_node(self.own_spec("kill a node")?, index)
    }

    /// Starts a node, a new one or one that was killed, and returns when it takes pods.
    pub fn add_node(&self, index: u8) -> Result<()> {
        launch::add_node(self.own_spec("add a node")?, index)
    }

    /// Sends a signal to a program of the cluster that the harness started on `host`, such as
    /// `kube-apiserver` on `control-plane` or `containerd` on `node1`.
    pub fn signal_component(&self, host: &str, program: &str, signal: Signal) -> Result<()> {
        let pid = self.component(host, program)?;
        kill(pid, signal).with_context(|| format!("send {signal} to {program}"))
    }

    /// Kills such a program and keeps it down until [`Cluster::resume_component`].
    pub fn stop_component(&self, host: &str, program: &str) -> Result<()> {
        // an earlier stop may not be over yet: wait until the program runs before it is killed again
        let pid = self.component(host, program)?;
        let file = self.pause_file(host, program)?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&file, "").with_context(|| format!("write {}", file.display()))?;
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill {program}"))?;
        until(&format!("the end of {program}"), ENDED, POLL, || {
            Ok(if components::is_down(&file) {
                Probe::Done(())
            } else {
                Probe::Missing("not noticed yet".into())
            })
        })
    }

    /// Adds a certificate to the bundle of authorities that every pod gets, which is the first step of
    /// a rotation. The controller manager reads the file when it starts, so it starts again.
    pub fn add_authority(&self) -> Result<()> {
        pki::add_authority(self.own_spec("add an authority")?)?;
        let publisher = (CONTROL_PLANE, "kube-controller-manager");
        self.stop_component(publisher.0, publisher.1)?;
        self.resume_component(publisher.0, publisher.1)
    }

    /// Gives the API server a certificate of the added authority, the next step of a rotation: who does not have
    /// the new bundle can no longer talk to it. The cluster's own programs read the bundle when they start.
    pub fn serve_with_added_authority(&self) -> Result<()> {
        pki::renew_api_server(self.own_spec("renew a certificate")?)?;
        let mut programs: Vec<(String, &str)> = [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        ]
        .map(|program| (CONTROL_PLANE.to_owned(), program))
        .into();
        for node in self.nodes()? {
            programs.extend(["kubelet", "kube-proxy"].map(|program| (node.clone(), program)));
        }
        for (host, program) in programs {
            self.stop_component(&host, program)?;
            self.resume_component(&host, program)?;
        }
        Ok(())
    }

    /// Makes a backup of etcd: a copy of its files as they are at one moment.
    pub fn back_up_etcd(&self) -> Result<()> {
        let (data, backup) = self.etcd_folders()?;
        self.signal_component(CONTROL_PLANE, "etcd", Signal::SIGSTOP)?;
        let copied = copy(&data, &backup);
        self.signal_component(CONTROL_PLANE, "etcd", Signal::SIGCONT)?;
        copied
    }

    /// Restores etcd from the backup. As after any restoration, every program that may know
    /// newer versions is started again.
    pub fn restore_etcd(&self) -> Result<()> {
        let (data, backup) = self.etcd_folders()?;
        self.stop_component(CONTROL_PLANE, "kube-apiserver")?;
        self.stop_component(CONTROL_PLANE, "etcd")?;
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        copy(&backup, &data)?;
        self.resume_component(CONTROL_PLANE, "etcd")?;
        self.resume_component(CONTROL_PLANE, "kube-apiserver")?;
        for program in ["kube-controller-manager", "kube-scheduler"] {
            self.stop_component(CONTROL_PLANE, program)?;
            self.resume_component(CONTROL_PLANE, program)?;
        }
        for node in self.nodes()? {
            self.stop_component(&node, "kubelet")?;
            self.resume_component(&node, "kubelet")?;
        }
        Ok(())
    }

    /// etcd's files, in the file system of the control plane, and those of its backup.
    fn etcd_folders(&self) -> Result<(PathBuf, PathBuf)> {
        let backup = self.own_spec("copy etcd")?.state.join("etcd-backup");
        let pid = self.component(CONTROL_PLANE, "kube-scheduler")?;
        Ok((format!("/proc/{pid}/root{RUN}/etcd").into(), backup))
    }

    /// The pid of such a program, as this machine sees it.
    pub fn component(&self, host: &str, program: &str) -> Result<Pid> {
        let find = || {
            let found = self.processes(host)?.into_iter().find(|process| {
                let path = process.arguments.first().map(Path::new);
                path.is_some_and(|path| path.is_absolute() && path.ends_with(program))
            });
            Ok(match found {
                Some(found) => Probe::Done(found.pid),
                None => Probe::Missing("no such process".into()),
            })
        };
        let what = format!("{program} to run on {host}");
        let pid = until(&what, RESTARTED, POLL, find)?;
        Ok(Pid::from_raw(
            i32::try_from(pid).context("pid out of range")?,
        ))
    }

    /// Starts it again.
    pub fn resume_component(&self, host: &str, program: &str) -> Result<()> {
        let file = self.pause_file(host, program)?;
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))
    }

    fn pause_file(&self, host: &str, program: &str) -> Result<PathBuf> {
        let log = match host {
            CONTROL_PLANE => program.to_owned(),
            host => format!("{host}-{program}"),
        };
        let spec = self.own_spec("stop a component")?;
        Ok(components::pause_file(spec, &log))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut cp = process::command("cp");
    cp.args(["--archive", "--no-target-directory"]);
    process::run(cp.arg(from).arg(to), COPIED).map(drop)
}
