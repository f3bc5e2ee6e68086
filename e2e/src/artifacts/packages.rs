//! What the machine must have: a few Debian packages, Go, and Rust's static target.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::progress::Step;

/// A program that must be on the PATH, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 13] = [
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ipset", "ipset"),
    ("modprobe", "kmod"),
    ("nsenter", "util-linux"),
    ("runc", "runc"),
    ("buildah", "buildah"),
    ("musl-gcc", "musl-tools"),
    ("gcc", "gcc"),
    ("curl", "curl"),
    ("pkill", "procps"),
];

/// Kernel modules that are not loaded on first use.
const KERNEL_MODULES: [&str; 3] = ["br_netfilter", "overlay", "veth"];

/// Installs what is missing.
pub fn ensure() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the test cluster needs root (namespaces, mounts, cgroups): run the command with sudo"
        );
    }
    install_missing()?;
    if !on_path("go") {
        bail!(
            "go is not on the PATH: install Go 1.26 or later (Kubernetes is built from its Go module)"
        );
    }
    for module in KERNEL_MODULES {
        // Some kernels have them built in, some containers may not load them. A missing one shows later.
        let _ = process::output(
            process::command("modprobe").arg(module),
            Duration::from_secs(10),
        );
    }
    Ok(())
}

/// Installs the Debian package that contains a file, if the file does not exist.
pub fn ensure_file(file: &str, package: &str) -> Result<()> {
    if Path::new(file).is_file() {
        return Ok(());
    }
    install(&[package])
}

fn on_path(program: &str) -> bool {
    env::split_paths(&process::search_path()).any(|folder| folder.join(program).is_file())
}

fn install_missing() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn install(missing: &[&str]) -> Result<()> {
    let list = missing.join(" ");
    if !on_path("apt-get") {
        bail!(
            "this machine lacks {list} (Debian's names) and has no apt-get: install them by hand"
        );
    }
    let step = Step::start(format!("apt-get install {list}"));
    let mut update = apt();
    process::run_long(
        "apt-get update",
        update.arg("update"),
        Duration::from_mins(10),
    )?;
    let mut install = apt();
    install
        .args(["install", "-y", "--no-install-recommends"])
        .args(missing);
    process::run_long("apt-get install", &mut install, Duration::from_mins(20))
        .with_context(|| format!("install the packages {list}"))?;
    step.done("installed");
    Ok(())
}

fn apt() -> Command {
    let mut apt = process::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    apt
}
