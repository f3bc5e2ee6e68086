//! The emulated machine: a kernel of Debian, and the files of this machine below a layer in memory.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Suite;
use super::debian::Kernel;
use crate::{paths, process};

/// For all suites of one kernel. The data plane's take 22 minutes on an idle machine.
const LIMIT: Duration = Duration::from_hours(3);
/// How many times slower than a real machine the emulated one is, on an idle machine.
pub(super) const SLOWNESS: u32 = 15;

/// Where the logs of the last run are.
pub(super) fn logs() -> PathBuf {
    paths::root().join("target/e2e/kernels")
}

/// Boots the kernel, runs the suites in it, and returns what each has printed.
pub(super) fn run(
    kernel: &Kernel,
    suites: &[Suite],
    slowness: u32,
    filter: &[String],
) -> Result<Vec<(&'static str, String)>> {
    let out = logs().join(&kernel.version);
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("remove {}", out.display()))?;
    }
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let script = out.join("guest.sh");
    fs::write(&script, guest(suites, slowness, filter))
        .with_context(|| format!("write {}", script.display()))?;
    let mut qemu = process::command("qemu-system-x86_64");
    // no KVM: it may be missing, and in nested machines it hangs
    qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max"]);
    qemu.args(["-m", "6144", "-nographic", "-no-reboot", "-nic", "none"]);
    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd").arg(&kernel.initramfs);
    for (path, tag, more) in [
        (PathBuf::from("/"), "host", ",readonly=on,multidevs=remap"),
        (kernel.modules.clone(), "modules", ",readonly=on"),
        (out.clone(), "out", ""),
    ] {
        let path = path.display();
        qemu.arg("-virtfs").arg(format!(
            "local,path={path},mount_tag={tag},security_model=none{more}"
        ));
    }
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    process::run_long(&format!("Linux {}", kernel.version), &mut qemu, LIMIT)?;
    let log = |suite: &Suite| {
        let path = out.join(format!("{}.log", suite.name));
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok((suite.name, String::from_utf8_lossy(&text).into_owned()))
    };
    suites.iter().map(log).collect()
}

/// What the guest does after it has this machine's files.
fn guest(suites: &[Suite], slowness: u32, filter: &[String]) -> String {
    let mut script = format!(
        r#"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export PORTMAPPING_TEST_SLOWNESS={slowness}
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
ulimit -n 1048576
# what a node's CNI loads; everything else is loaded on first use
modprobe -a veth bridge br_netfilter
# with the kernel's own SCTP the tests make associations, and not single packets
modprobe sctp && export PORTMAPPING_TEST_SCTP=1
echo "guest: Linux $(uname -r), SCTP of its own: ${{PORTMAPPING_TEST_SCTP:-none}}"
"#
    );
    for suite in suites {
        let Suite {
            name,
            program,
            folder,
        } = suite;
        let filter: String = filter.iter().fold(String::new(), |mut text, word| {
            let _ = write!(text, " '{}'", word.replace('\'', ""));
            text
        });
        let _ = writeln!(
            script,
            "cd '{}'\n'{}' --test-threads=2 --show-output{filter} 2>&1 | tee /out/{name}.log | grep --line-buffered '^test '",
            folder.display(),
            program.display(),
        );
    }
    // powers off
    script.push_str("sync; echo o > /proc/sysrq-trigger; sleep 60\n");
    script
}
