//! The mount namespace of a machine: its own /proc, /sys and /run, and tmpfs over every folder that a
//! component writes to. The disk below stays as it was.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::cgroups::{self, Layout};

/// Where a machine keeps its configuration and sockets.
pub(crate) const RUN: &str = "/run/cluster";

/// Sysctls of the whole machine that kubelet or Cilium write. They see the values that they want, and write none.
const SYSCTLS: [(&str, &str); 8] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/timer_migration", "0"),
    ("kernel/unprivileged_bpf_disabled", "1"),
];

/// The mounts of every machine, the control plane included.
pub(crate) fn machine(cgroups: Option<&Layout>) -> Result<()> {
    propagation(MsFlags::MS_PRIVATE)?;
    mount_on("proc", "/proc", "proc", None)?;
    mount_on("sysfs", "/sys", "sysfs", None)?;
    if let Some(layout) = cgroups {
        cgroups::remount(layout)?;
    }
    mount_on("tmpfs", "/run", "tmpfs", Some("mode=755"))?;
    for folder in ["/run/netns", "/run/lock", RUN] {
        create(folder)?;
    }
    Ok(())
}

/// What a node needs on top.
pub(crate) fn node() -> Result<()> {
    // Changes to these land in memory: mount points below them need not exist on the disk.
    for (index, folder) in ["/var/lib", "/var/log"].into_iter().enumerate() {
        let (upper, work) = (
            format!("{RUN}/over/{index}/upper"),
            format!("{RUN}/over/{index}/work"),
        );
        create(&upper)?;
        create(&work)?;
        let options = format!("lowerdir={folder},upperdir={upper},workdir={work}");
        mount_on("overlay", folder, "overlay", Some(&options))?;
    }
    // An overlay cannot be the upper layer of the containers' overlays, so these are tmpfs.
    for folder in ["cni", "kubelet", "containerd"].map(|name| format!("/var/lib/{name}")) {
        create(&folder)?;
        mount_on("tmpfs", &folder, "tmpfs", Some("mode=755"))?;
    }
    for folder in ["/var/log/pods", "/var/log/containers"] {
        create(folder)?;
    }
    mask_sysctls()?;
    // kubelet propagates mounts to containers.
    propagation(MsFlags::MS_SHARED)
}

fn mask_sysctls() -> Result<()> {
    for (key, value) in SYSCTLS {
        let target = format!("/proc/sys/{key}");
        if !Path::new(&target).exists() {
            continue;
        }
        let file = format!("{RUN}/sysctl/{key}");
        if let Some(parent) = Path::new(&file).parent() {
            create(parent)?;
        }
        fs::write(&file, value).with_context(|| format!("write {file}"))?;
        mount(
            Some(file.as_str()),
            target.as_str(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("bind {file} over {target}"))?;
    }
    Ok(())
}

fn propagation(kind: MsFlags) -> Result<()> {
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | kind,
        None::<&str>,
    )
    .context("set the propagation of all mounts")
}

fn create(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

fn mount_on(source: &str, target: &str, kind: &str, options: Option<&str>) -> Result<()> {
    mount(Some(source), target, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {target}"))
}
